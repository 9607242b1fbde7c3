"""VMs that fail under load, as processes of their own. `scripts/drill` starts it."""
