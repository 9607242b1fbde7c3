//! The first in the order of the file that is open: the others are its reserve.

use super::Candidates;

pub(super) fn pick(candidates: &Candidates<'_>) -> Option<usize> {
    candidates.all_open().next().map(|candidate| candidate.slot)
}
