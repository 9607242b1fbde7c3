//! The life of one endpoint's probe, and why a probe may fail.

mod grpc;
mod http;
mod tcp;

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode};
use foregate_exchange::{Failure, Kind, clock};
use foregate_routing::{Endpoint, HealthCheck, Probe, State};
use foregate_upstream::Transport;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::dice::{Dice, scale};
use crate::standing::Standing;
use crate::verdict::Streak;

/// The first probes of many endpoints are spread over at most this long.
const SPREAD: Duration = Duration::from_millis(500);
/// While a state is about to change probes come so many times as often, so that it does soon.
const HURRY: u32 = 5;
/// But no more often than this, where the interval is not shorter anyway.
const FASTEST: Duration = Duration::from_millis(250);
/// While requests wait for a pool to wake probes come no more seldom than this.
const AWAITED: Duration = Duration::from_secs(1);
/// So many probes run at a time. More than that of slow VMs would only say that the gateway is slow.
pub(crate) const AT_A_TIME: usize = 256;
/// How long a VM may take for a sign of life, where its pool says nothing.
const LIFE: Duration = Duration::from_secs(2);

/// Probes an endpoint as its check says and writes its state. Ends only by being dropped.
pub(crate) async fn watch(
    endpoint: Arc<Endpoint>,
    check: HealthCheck,
    transport: Arc<Transport>,
    standing: Rc<Standing>,
    gate: Rc<Semaphore>,
) {
    let gate = &*gate;
    match &check.probe {
        Probe::Http { path, status, host, contains } => {
            let ask = asked(path, status, host.as_deref(), contains.as_deref());
            let mut probe = http::HttpProbe::new(&endpoint, &transport, ask, check.timeout);
            attend(&endpoint, &check, &standing, gate, async || probe.run().await).await;
        }
        Probe::Grpc { service } => {
            let mut probe = http::HttpProbe::new(&endpoint, &transport, serving(service), check.timeout);
            attend(&endpoint, &check, &standing, gate, async || probe.run().await).await;
        }
        Probe::Tcp => {
            let probe = tcp::TcpProbe::new(&endpoint, check.timeout);
            attend(&endpoint, &check, &standing, gate, async || probe.run().await).await;
        }
    }
}

/// One probe of a VM that lets requests wait: its pool's own over HTTP or gRPC, where there is one. A port that is open says
/// nothing of a program that hangs, so otherwise anything it does upon HEAD is a sign of life.
pub(crate) async fn once(
    endpoint: &Endpoint,
    check: Option<&HealthCheck>,
    transport: &Transport,
) -> Result<(), Unwell> {
    const ANY: &[RangeInclusive<u16>] = &[100..=599];
    let timeout = check.map_or(LIFE, |check| check.timeout);
    let asks = check.is_some_and(|check| check.probe != Probe::Tcp);
    let ask = match check.map(|check| &check.probe) {
        Some(Probe::Http { path, status, host, contains }) => {
            asked(path, status, host.as_deref(), contains.as_deref())
        }
        Some(Probe::Grpc { service }) => serving(service),
        Some(Probe::Tcp) | None => http::Ask { method: Method::HEAD, ..asked("/", ANY, None, None) },
    };
    let found = http::HttpProbe::new(endpoint, transport, ask, timeout).run().await;
    match found {
        // It has something against the question, so it is alive.
        Err(Unwell::Failed(failure))
            if !asks && matches!(failure.kind(), Kind::Reset | Kind::BadResponse | Kind::Truncated) =>
        {
            Ok(())
        }
        found => found,
    }
}

fn asked<'c>(
    path: &'c str,
    status: &'c [RangeInclusive<u16>],
    host: Option<&'c str>,
    contains: Option<&'c str>,
) -> http::Ask<'c> {
    http::Ask { method: Method::GET, path, host, wanted: http::Wanted::Answer { status, contains } }
}

fn serving(service: &str) -> http::Ask<'_> {
    http::Ask {
        method: Method::POST,
        path: grpc::PATH,
        host: None,
        wanted: http::Wanted::Serving { service },
    }
}

/// One probe soon after the start, then one every interval, counted from start to start; never two at once, and more often
/// while the state is about to change.
async fn attend(
    endpoint: &Arc<Endpoint>,
    check: &HealthCheck,
    standing: &Standing,
    gate: &Semaphore,
    mut probe: impl AsyncFnMut() -> Result<(), Unwell>,
) {
    let mut dice = Dice::new();
    let mut streak = Streak::new(check.rise, check.fall);
    // Whether there is somebody to wake is to be known at once.
    let sleeps = standing.pool().wake.is_some();
    let spread = if sleeps { Duration::ZERO } else { SPREAD.min(check.interval) };
    sleep(scale(spread, dice.roll())).await;
    loop {
        // It is never closed.
        let turn = gate.acquire().await;
        let begun = Instant::now();
        let found = probe().await;
        drop(turn);
        if found.is_ok() {
            endpoint.vitals.probed_well(clock::now_nanos());
        }
        let state = endpoint.vitals.state();
        let change = streak.judge(state, found.is_ok());
        let asleep = sleeps && state == State::Unknown && found.is_err();
        let change = change.or_else(|| asleep.then_some(State::Down));
        match (&found, change) {
            (Ok(()), Some(state)) if streak.length() < 2 => {
                standing.change(endpoint, state, &"the probe succeeded")
            }
            (Ok(()), Some(state)) => {
                let reason = format!("{} probes in a row succeeded", streak.length());
                standing.change(endpoint, state, &reason);
            }
            (Err(unwell), Some(state)) => standing.change(endpoint, state, unwell),
            (Err(unwell), None) if endpoint.vitals.state() != State::Down => {
                let (failures, fall) = (streak.length(), check.fall);
                let (pool, address) = (&*endpoint.pool, &endpoint.address);
                tracing::debug!(pool, %address, reason = %unwell, failures, fall, "a probe failed");
            }
            (_, None) => {}
        }
        let interval = match streak.confirms(endpoint.vitals.state()) {
            _ if standing.is_waking() => check.interval.min(AWAITED),
            true => check.interval,
            false => hurried(check.interval),
        };
        let rest = dice.jittered(interval).saturating_sub(begun.elapsed());
        // Over before its time, when somebody waits for the pool to wake.
        _ = timeout(rest, standing.stirred()).await;
    }
}

/// An interval while the state is about to change.
fn hurried(interval: Duration) -> Duration {
    (interval / HURRY).max(FASTEST).min(interval)
}

/// Why a probe failed, in the words of the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unwell {
    /// The check's own time-out.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The pool's time-out for connecting, where it is shorter.
    #[error("no connection within {0:?}")]
    Unconnected(Duration),
    #[error("{0}")]
    Failed(Failure),
    #[error("HTTP probe: status {}, expected {expected}", .found.as_u16())]
    Status { found: StatusCode, expected: String },
    #[error("HTTP probe: \"{0}\" is not in the first 64 KiB of the body")]
    Missing(Box<str>),
    #[error("gRPC probe: {0}")]
    NotServing(String),
    /// The configuration lets none of these through.
    #[error("HTTP probe: {0} cannot be asked for")]
    Unaskable(String),
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::timeout;

    use super::*;
    use crate::testing;

    const INTERVAL: Duration = Duration::from_secs(5);

    /// Attends for so long, every five seconds; when each probe began, and the endpoint.
    async fn attended(
        rise: u32,
        fall: u32,
        long: Duration,
        probe: impl AsyncFn(usize) -> Result<(), Unwell>,
    ) -> (Vec<Duration>, Arc<Endpoint>) {
        let address = ([127, 0, 0, 1], 1).into();
        let check = HealthCheck { interval: INTERVAL, ..testing::check(Probe::Tcp, rise, fall) };
        let snapshot = testing::snapshot(None, [testing::pool("api", Some(check.clone()), &[address])]);
        let pool = snapshot.pools()[0].clone();
        let endpoint = pool.members()[0].endpoint.clone();
        let (begun, times) = (Instant::now(), RefCell::new(Vec::new()));
        let one = async || {
            let number = times.borrow().len();
            times.borrow_mut().push(begun.elapsed());
            probe(number).await
        };
        let standing = Standing::new(pool, testing::transport(foregate_upstream::Protocol::Http1));
        timeout(long, attend(&endpoint, &check, &standing, &Semaphore::new(1), one)).await.unwrap_err();
        (times.into_inner(), endpoint)
    }

    fn gaps(times: &[Duration]) -> Vec<Duration> {
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn soon_first_then_every_interval_more_or_less() {
        let (times, endpoint) = attended(2, 3, Duration::from_secs(3600), async |_| Ok(())).await;
        assert!(times[0] <= SPREAD + Duration::from_millis(1), "{:?}", times[0]);
        assert!((690..=750).contains(&times.len()), "{}", times.len());
        // The clock of the tests has a grain of a millisecond.
        let within = Duration::from_millis(4499)..=Duration::from_millis(5501);
        let gaps = gaps(&times);
        assert!(gaps.iter().all(|gap| within.contains(gap)), "{gaps:?}");
        assert!(gaps.iter().min() < Some(&Duration::from_millis(4700)), "it is spread");
        assert!(gaps.iter().max() > Some(&Duration::from_millis(5300)), "it is spread");
        assert_eq!(endpoint.vitals.state(), State::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_probe_delays_the_next_only_if_it_must() {
        let slow = async |seconds| {
            attended(2, 3, Duration::from_secs(600), async |_| {
                sleep(Duration::from_secs(seconds)).await;
                Ok(())
            })
            .await
        };
        let within = Duration::from_millis(4499)..=Duration::from_millis(5501);
        assert!(gaps(&slow(3).await.0).iter().all(|gap| within.contains(gap)));
        let within = Duration::from_secs(7)..=Duration::from_millis(7002);
        assert!(gaps(&slow(7).await.0).iter().all(|gap| within.contains(gap)));
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_state_is_about_to_change_probes_hurry() {
        let found = [[true; 2].as_slice(), &[false; 35], &[true; 9]].concat();
        let (times, _) = attended(2, 3, INTERVAL * 22, async |number| {
            if found[number.min(40)] { Ok(()) } else { Err(Unwell::Silent(INTERVAL)) }
        })
        .await;
        let gaps: Vec<_> = gaps(&times).iter().map(|gap| gap.as_secs_f64().round() as u64).collect();
        let hurried: Vec<_> = [[5; 2].as_slice(), &[1; 32], &[5; 3], &[1], &[5; 2]].concat();
        assert_eq!(gaps[..40], hurried, "once it is up, or has been down for some time, there is no hurry");
        let short = Duration::from_millis(300);
        assert_eq!([super::hurried(short), super::hurried(short / 3)], [FASTEST, short / 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn states_follow_the_probes() {
        let found = [true, false, false, false, true, true, false, true];
        for (probes, state) in [
            (1, State::Up),
            (3, State::Up),
            (4, State::Down),
            (5, State::Down),
            (6, State::Up),
            (8, State::Up),
        ] {
            let (times, endpoint) = attended(2, 3, INTERVAL * 60, async |number| {
                if number == probes {
                    std::future::pending::<()>().await;
                }
                if found[number] { Ok(()) } else { Err(Unwell::Silent(INTERVAL)) }
            })
            .await;
            assert_eq!(times.len(), probes + 1);
            assert_eq!(endpoint.vitals.state(), state, "after {probes} probes");
        }
    }
}
