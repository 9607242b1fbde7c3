//! How a snapshot reaches the workers: one atomic swap by the single publisher, one atomic load per read.
//!
//! Generic, because the program publishes a larger struct that contains the [`Snapshot`](crate::Snapshot).

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

/// The publishing end. Clones publish to the same readers.
pub struct Publisher<T>(Arc<ArcSwap<T>>);

impl<T> Publisher<T> {
    pub fn new(first: T) -> Publisher<T> {
        Publisher(Arc::new(ArcSwap::from_pointee(first)))
    }

    /// Makes `next` what every reader sees at its next [`Reader::current`]. Returns it, shared.
    pub fn publish(&self, next: T) -> Arc<T> {
        let next = Arc::new(next);
        self.0.store(Arc::clone(&next));
        next
    }

    /// What is published now. For the control thread; a worker has a [`Reader`].
    pub fn load(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// A reader for the calling worker: it holds an `Rc` and cannot leave its thread, so move a clone of
    /// the publisher to the worker and call this there.
    pub fn reader(&self) -> Reader<T> {
        let mut cache = Cache::new(Arc::clone(&self.0));
        let current = Rc::new(Arc::clone(cache.load()));
        Reader { cache, current }
    }
}

impl<T> Clone for Publisher<T> {
    fn clone(&self) -> Self {
        Publisher(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

/// One published value as the requests of one worker hold it.
///
/// They clone the `Rc`, and so keep one value for their whole life without touching a cache line that another
/// core writes: the `Arc` inside is counted once per worker and value.
pub type Held<T> = Rc<Arc<T>>;

/// A worker's view of what is published.
pub struct Reader<T> {
    cache: Cache<Arc<ArcSwap<T>>, Arc<T>>,
    current: Held<T>,
}

impl<T> Reader<T> {
    /// The newest published value: one relaxed atomic load when nothing has changed. An idle worker keeps
    /// the value before alive until it calls this.
    pub fn current(&mut self) -> &Held<T> {
        let newest = self.cache.load();
        if !Arc::ptr_eq(newest, &self.current) {
            self.current = Rc::new(Arc::clone(newest));
        }
        &self.current
    }
}

impl<T> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_the_newest_and_a_holder_keeps_its_own() {
        let publisher = Publisher::new(1);
        let mut reader = publisher.reader();
        let held = Rc::clone(reader.current());
        assert!(Rc::ptr_eq(&held, reader.current()), "one Rc per value and worker");

        let published = publisher.clone().publish(2);
        assert_eq!((**held).to_owned(), 1);
        assert!(Arc::ptr_eq(reader.current(), &published));
        assert!(Arc::ptr_eq(&publisher.load(), &published));
        assert_eq!(Rc::strong_count(&held), 1, "the reader let go of the value before");
    }

    #[test]
    fn every_worker_is_told() {
        let publisher = Publisher::new(String::from("a"));
        let (seen, see) = std::sync::mpsc::channel();
        let (published, wait) = std::sync::mpsc::channel();
        let for_worker = publisher.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut reader = for_worker.reader();
                seen.send(reader.current().to_string()).unwrap();
                wait.recv().unwrap();
                seen.send(reader.current().to_string()).unwrap();
            });
            assert_eq!(see.recv().unwrap(), "a");
            publisher.publish(String::from("b"));
            published.send(()).unwrap();
            assert_eq!(see.recv().unwrap(), "b");
        });
    }
}
