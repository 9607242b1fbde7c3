//! Files that change: looked at once a second. A look costs microseconds, and unlike what the kernel tells it also sees what
//! happens on a file system of another machine, through a link that is swapped, or by a rename.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::{Ask, Request, Terms};
use crate::config;
use crate::pair::{Look, look_at};
use crate::upgrade::Seen;

const LOOK: Duration = Duration::from_secs(1);
/// How long something that may pass keeps a change from being served before it is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// How often what has changed must look the same before it is read: editors and `rsync` write in steps.
const SETTLED: u32 = 1;

type Looks = BTreeMap<PathBuf, Look>;

/// A configuration, and how its files looked before they were read.
pub(crate) struct Watch {
    watched: Watched,
    served: Looks,
}

impl Watch {
    /// To be called before the configuration at this path is read: what changes from now on is followed.
    pub(crate) fn begin(path: PathBuf) -> Watch {
        let mut watched = Watched::new(path);
        Watch { served: watched.look(), watched }
    }

    /// Goes on where the process before was. What it did not see may be anything.
    pub(crate) fn go_on(path: PathBuf, seen: Option<&[Seen]>) -> Watch {
        let seen = seen.unwrap_or_default().iter();
        let served = seen.map(|(path, look)| (path.into(), *look)).collect();
        Watch { watched: Watched::new(path), served }
    }
}

/// Looks until dropped.
pub(super) struct Watching {
    /// As the files were when what is in them was taken up, or refused for good.
    served: Rc<RefCell<Looks>>,
    task: AbortHandle,
}

impl Watching {
    /// Asks for a reload each time the configuration has changed. In a local runtime.
    pub(super) fn begin(Watch { watched, served }: Watch, asks: UnboundedSender<Ask>) -> Watching {
        let served = Rc::new(RefCell::new(served));
        let task = tokio::task::spawn_local(watch(watched, served.clone(), asks)).abort_handle();
        Watching { served, task }
    }

    /// For a successor.
    pub(super) fn served(&self) -> Vec<Seen> {
        let seen = |(path, look): (&PathBuf, &Look)| (path.to_string_lossy().into_owned(), *look);
        self.served.borrow().iter().map(seen).collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends when nobody listens any more.
async fn watch(mut watched: Watched, served: Rc<RefCell<Looks>>, asks: UnboundedSender<Ask>) {
    let (mut last, mut same) = (served.borrow().clone(), 0);
    let mut trouble = String::new();
    let mut pause = LOOK;
    loop {
        tokio::time::sleep(pause).await;
        pause = LOOK;
        let now = watched.look();
        same = if now == last { same + 1 } else { 0 };
        last.clone_from(&now);
        if now == *served.borrow() || same < SETTLED {
            continue;
        }
        let (reply, answered) = oneshot::channel();
        let request = Request::Reload(Terms::default());
        if asks.send(Ask { request, by: "the files changed".to_owned(), reply: Some(reply) }).is_err() {
            return;
        }
        match answered.await {
            Ok(Ok(_)) => trouble.clear(),
            Ok(Err(refused)) => {
                if refused.message != trouble {
                    tracing::error!("the files changed, and nothing follows:\n{}", refused.message);
                }
                trouble = refused.message;
                if refused.passes {
                    pause = AGAIN;
                    continue;
                }
            }
            Err(_) => return,
        }
        served.replace(now);
    }
}

/// The files of one configuration.
struct Watched {
    main: PathBuf,
    /// As it was when it was read last.
    read: Look,
    include: Option<(PathBuf, String)>,
}

impl Watched {
    fn new(main: PathBuf) -> Watched {
        Watched { read: look_at(&main), include: config::include_of(&main), main }
    }

    fn look(&mut self) -> Looks {
        let main = look_at(&self.main);
        if main != self.read {
            self.read = main;
            self.include = config::include_of(&self.main);
        }
        let matching = |(folder, pattern): &(PathBuf, String)| config::matching(folder, pattern).ok();
        let included = self.include.as_ref().and_then(matching).unwrap_or_default();
        let mut all: Looks = included.into_iter().map(|path| (path.clone(), look_at(&path))).collect();
        all.insert(self.main.clone(), main);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_way_of_changing_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let main = at("foregate.toml");
        fs::create_dir(at("conf.d")).unwrap();
        fs::write(&main, "include = \"conf.d/*.toml\"\n").unwrap();
        let mut watched = Watched::new(main.clone());
        let mut before = watched.look();
        let mut differs = |what: &str| {
            let now = watched.look();
            assert_ne!(now, before, "{what}");
            before = now;
            assert_eq!(watched.look(), before, "{what}");
        };
        fs::write(at("conf.d/a.toml"), "").unwrap();
        differs("a file comes");
        fs::write(at("conf.d/a.toml"), "# more").unwrap();
        differs("a file is written");
        fs::write(at("new"), "# less").unwrap();
        fs::rename(at("new"), at("conf.d/a.toml")).unwrap();
        differs("a file is replaced");
        fs::remove_file(at("conf.d/a.toml")).unwrap();
        differs("a file goes");
        fs::create_dir(at("one")).unwrap();
        fs::create_dir(at("two")).unwrap();
        for version in ["one", "two"] {
            fs::write(at(version).join("b.toml"), "").unwrap();
        }
        std::os::unix::fs::symlink("one", at("data")).unwrap();
        std::os::unix::fs::symlink("../data/b.toml", at("conf.d/b.toml")).unwrap();
        differs("a link comes");
        std::os::unix::fs::symlink("two", at("other")).unwrap();
        fs::rename(at("other"), at("data")).unwrap();
        differs("what a link leads to is swapped");
        fs::write(&main, "include = \"one/*.toml\"\n").unwrap();
        differs("other files are included");
        fs::write(at("one/c.toml"), "").unwrap();
        differs("one of those comes");
    }
}
