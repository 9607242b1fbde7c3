//! The first in the order of the file that is open: the others are its reserve.

use super::{Candidates, Occasion};

pub(super) fn pick(candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
    let mut all = candidates.all_open();
    let takes = all.find(|candidate| candidates.takes_turn(candidate, occasion.dice));
    takes.or_else(|| candidates.all_open().next()).map(|candidate| candidate.slot)
}
