//! The power of two choices (Mitzenmacher): two are drawn by weight, the less loaded gets the request. Needs
//! no common memory, hardly worse than looking at all, and does not send everybody to the one that looks
//! idle when several gateways share the VMs.

use super::{Candidates, Draw, Occasion};

/// Load is in flight / weight, without the request to come: on an idle pool every pair ties, the first of
/// the two wins, and the shares are exactly the weights.
pub(super) fn pick(draw: &Draw, candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
    let (first, second) = draw.two(candidates, occasion.dice)?;
    let first_load = u128::from(first.vitals.in_flight()) * u128::from(second.weight());
    let second_load = u128::from(second.vitals.in_flight()) * u128::from(first.weight());
    Some(if second_load < first_load { second.slot } else { first.slot })
}
