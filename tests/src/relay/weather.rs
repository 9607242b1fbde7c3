//! What a bad network does to datagrams: loss, delay and another order, by a seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// What happens to the datagrams of each direction. The default is a clear sky.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// What decides; the same datagrams in the same order meet the same fate.
    pub seed: u64,
    /// Of a thousand datagrams so many are lost.
    pub loss: u64,
    /// How long each is under way.
    pub delay: Duration,
    /// Of a thousand datagrams so many are under way for longer, by up to `held`, and later ones overtake them.
    pub late: u64,
    pub held: Duration,
    /// How often the gateway sees a new source port.
    pub hop: Option<Duration>,
    /// Longer datagrams never arrive.
    pub carries: Option<usize>,
}

impl Weather {
    pub(super) fn lets_pass(&self, length: usize) -> bool {
        self.carries.is_none_or(|most| length <= most)
    }
}

/// One direction: what is put in comes out when it is due, if it does.
pub(super) struct Line<T> {
    weather: Weather,
    dice: Dice,
    put: u64,
    /// When each is due, and its number; the one that is due first is at the top.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    waiting: BTreeMap<u64, T>,
    lost: Arc<AtomicUsize>,
    overtaken: Arc<AtomicUsize>,
}

impl<T> Line<T> {
    /// `salt` tells the lines of one relay apart.
    pub(super) fn new(
        weather: Weather,
        salt: u64,
        lost: Arc<AtomicUsize>,
        overtaken: Arc<AtomicUsize>,
    ) -> Line<T> {
        let dice = Dice(weather.seed ^ salt.rotate_left(32));
        let (due, waiting) = (BinaryHeap::new(), BTreeMap::new());
        Line { weather, dice, put: 0, due, waiting, lost, overtaken }
    }

    pub(super) fn put(&mut self, datagram: T) {
        if self.dice.of_thousand(self.weather.loss) {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let mut due = Instant::now() + self.weather.delay;
        if self.dice.of_thousand(self.weather.late) {
            due += self.weather.held.mul_f64(self.dice.share());
        }
        self.put += 1;
        self.due.push(Reverse((due, self.put)));
        self.waiting.insert(self.put, datagram);
    }

    /// The next one, when it is due. Cancel-safe.
    pub(super) async fn next(&mut self) -> T {
        let Some(&Reverse((due, number))) = self.due.peek() else { return std::future::pending().await };
        // The clock counts milliseconds: what is due is not held up by another one.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        self.due.pop();
        if self.waiting.first_key_value().is_some_and(|(first, _)| *first < number) {
            self.overtaken.fetch_add(1, Ordering::SeqCst);
        }
        self.waiting.remove(&number).expect("what is due is waiting")
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn of_thousand(&mut self, count: u64) -> bool {
        self.next() % 1000 < count
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u32 = 10_000;

    /// The order in which so many datagrams, one each millisecond, come out, and the two counts.
    async fn come_out(weather: Weather) -> (Vec<u32>, usize, usize) {
        let (lost, overtaken) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut line = Line::new(weather, 0, lost.clone(), overtaken.clone());
        let mut out = Vec::new();
        let mut numbers = 0..COUNT;
        let mut clock = tokio::time::interval(Duration::from_millis(1));
        while out.len() + lost.load(Ordering::SeqCst) < COUNT as usize {
            tokio::select! {
                biased;
                number = line.next() => out.push(number),
                _ = clock.tick() => numbers.by_ref().take(1).for_each(|number| line.put(number)),
            }
        }
        (out, lost.load(Ordering::SeqCst), overtaken.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_decides_what_is_lost_and_overtaken() {
        let bad = Weather {
            seed: 7,
            loss: 50,
            delay: Duration::from_millis(50),
            late: 100,
            held: Duration::from_millis(20),
            hop: None,
            carries: None,
        };
        let (order, lost, overtaken) = come_out(bad).await;
        assert!((400..600).contains(&lost), "{lost}");
        assert!(overtaken > 500, "{overtaken}");
        assert!(!order.is_sorted());
        assert_eq!(come_out(bad).await, (order.clone(), lost, overtaken));
        assert_ne!(come_out(Weather { seed: 8, ..bad }).await.0, order);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clear_sky_changes_nothing_and_delay_no_order() {
        for delay in [0, 50] {
            let clear = Weather { delay: Duration::from_millis(delay), ..Weather::default() };
            let began = Instant::now();
            let (order, lost, overtaken) = come_out(clear).await;
            assert_eq!((lost, overtaken), (0, 0));
            assert!(order.into_iter().eq(0..COUNT));
            let last = Duration::from_millis(u64::from(COUNT) - 1 + delay);
            assert_eq!(began.elapsed(), last);
        }
    }
}
