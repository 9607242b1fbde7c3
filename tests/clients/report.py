"""What the scripts here share: packages that are asked for by name, and a result as one line of JSON."""

import contextlib
import hashlib
import json
import sys


@contextlib.contextmanager
def need(package):
    """Imports inside; without the package the result is a sentence that names what to install."""
    try:
        yield
    except ImportError as error:
        say(
            missing=f"The Python package {package} is missing ({error}). Install it with: "
            f"{sys.executable} -m pip install {package}, or all of them with: "
            f"{sys.executable} -m pip install -r scripts/requirements.txt"
        )
        sys.exit(3)


def say(**fields):
    print(json.dumps(fields), flush=True)


def sha256(data):
    return hashlib.sha256(data).hexdigest()
