//! The one that promises the soonest answer: its recent latency, quick to rise and slow to fall (peak EWMA,
//! as in Finagle), times the requests it would then have in flight, for its weight.

use super::{Candidate, Candidates, Draw, Occasion};

/// Up to so many members are all looked at: two choices of three would too often be the same one.
const LOOK_AT_ALL: usize = 4;

/// What an endpoint without any sample is taken for once it has work, in seconds: worse than every known
/// one. So a new VM gets one request at a time until the first answer tells how fast it is.
const UNKNOWN: f64 = 3600.0;

pub(super) fn pick(draw: &Draw, candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
    let now = occasion.now_nanos;
    if candidates.len() <= LOOK_AT_ALL {
        let cheapest = candidates.cheapest(occasion.dice, |candidate| cost(candidate, now))?;
        return Some(cheapest.slot);
    }
    let (first, second) = draw.two(candidates, occasion.dice)?;
    Some(if cost(&second, now) < cost(&first, now) { second.slot } else { first.slot })
}

fn cost(candidate: &Candidate<'_>, now_nanos: u64) -> f64 {
    let latency = candidate.vitals.latency(now_nanos);
    let running = candidate.vitals.in_flight();
    let in_flight = f64::from(running);
    let cost = match latency {
        0.0 if in_flight == 0.0 => 0.0,
        0.0 => UNKNOWN * in_flight,
        _ => latency * (in_flight + 1.0),
    };
    cost / candidate.weight_with(running) as f64
}
