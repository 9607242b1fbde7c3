//! A request's body on its way to a VM: whether it is through, why it failed, and whether it may start.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::deadline::Deadline;
use foregate_exchange::{Body, Failure};
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use crate::patience::Patience;
use crate::replay::Kept;

/// How long a body waits for the VM's 100 (Continue) before it goes without (RFC 9110, section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The body as it is sent. Its [`Progress`] outlives it.
pub(crate) struct Upload {
    body: Body,
    progress: Option<Rc<Progress>>,
    /// Set while the body waits for permission.
    wait: Option<Pin<Box<Sleep>>>,
    /// What has been sent, as long as the VM may say that it has not looked at it.
    kept: Option<Kept>,
}

/// What became of a body, seen from outside.
#[derive(Default)]
pub(crate) struct Progress {
    done: Cell<bool>,
    taken: Cell<u64>,
    /// The VM has asked for more, and the client has not sent it yet.
    waits_for_client: Cell<bool>,
    allowed: Cell<bool>,
    waiter: Cell<Option<Waker>>,
    observer: Cell<Option<Waker>>,
    failure: RefCell<Option<Failure>>,
}

impl Progress {
    /// How many pieces the VM has taken, if the next step is the VM's; wakes the last caller when the
    /// body is through or has failed.
    pub(crate) fn vms_turn(&self, cx: &mut Context<'_>) -> Option<u64> {
        if !self.done.get() {
            self.observer.set(Some(cx.waker().clone()));
        }
        (!self.waits_for_client.get()).then(|| self.taken.get())
    }

    fn finish(&self) {
        self.done.set(true);
        if let Some(waker) = self.observer.take() {
            waker.wake();
        }
    }

    /// The VM said 100: the body may start.
    pub(crate) fn allow(&self) {
        self.allowed.set(true);
        if let Some(waker) = self.waiter.take() {
            waker.wake();
        }
    }

    /// Whether the client's side has ended the body: what the VM does then is not its fault.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// The failure of the client's side that ended the body.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.borrow().clone()
    }
}

/// The task that sends what is left of a body whose response has begun.
pub(crate) struct Rest {
    task: AbortHandle,
    progress: Option<Rc<Progress>>,
    /// How long the VM may take nothing of it once it has said everything.
    limit: Option<Duration>,
}

impl Rest {
    pub(crate) fn new(task: AbortHandle, progress: Option<Rc<Progress>>, limit: Option<Duration>) -> Rest {
        Rest { task, progress, limit }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.has_failed())
    }

    pub(crate) fn abort(self) {
        self.task.abort();
    }

    /// The response is whole. A VM that takes nothing any more wants nothing, even if it does not say so.
    pub(crate) fn end(self) {
        if self.limit.is_none() || self.task.is_finished() {
            return;
        }
        tokio::task::spawn_local(async move {
            let (mut patience, mut deadline) = (Patience::new(self.limit), Deadline::default());
            poll_fn(|cx| match self.task.is_finished() {
                true => Poll::Ready(()),
                false => patience.poll(&mut deadline, self.progress.as_deref(), cx),
            })
            .await;
            self.task.abort();
        });
    }
}

impl Upload {
    /// `expects` holds the body back until [`Progress::allow`], or for a second.
    pub(crate) fn new(body: Body, expects: bool) -> (Upload, Option<Rc<Progress>>) {
        if http_body::Body::is_end_stream(&body) {
            return (Upload { body, progress: None, wait: None, kept: None }, None);
        }
        let progress = Rc::new(Progress::default());
        let wait = expects.then(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT)));
        (Upload { body, progress: Some(progress.clone()), wait, kept: None }, Some(progress))
    }

    /// The body back, where nothing of it was sent.
    pub(crate) fn into_body(self) -> Body {
        self.body
    }

    /// From now on what is sent is kept, if it is not too much, so that it can be sent again.
    pub(crate) fn keep(&mut self) {
        self.kept = Some(Kept::default());
    }

    /// The VM has taken the request.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// The whole body, where it was kept and the client has not failed.
    pub(crate) fn again(&mut self) -> Option<Body> {
        let failed = self.progress.as_ref().is_some_and(|progress| progress.has_failed());
        let kept = self.kept.take().filter(|_| !failed)?;
        Some(kept.again(std::mem::take(&mut self.body)))
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        let Some(progress) = &this.progress else { return Poll::Ready(None) };
        if let Some(wait) = &mut this.wait {
            if !progress.allowed.get() && wait.as_mut().poll(cx).is_pending() {
                progress.waiter.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            this.wait = None;
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        progress.waits_for_client.set(frame.is_pending());
        progress.taken.set(progress.taken.get() + u64::from(frame.is_ready()));
        let kept = match (&frame, &mut this.kept) {
            (Poll::Ready(Some(Ok(frame))), Some(kept)) => kept.note(Some(frame)),
            (Poll::Ready(None), Some(kept)) => kept.note(None),
            _ => true,
        };
        if !kept {
            this.kept = None;
        }
        match &frame {
            Poll::Ready(None) => progress.finish(),
            Poll::Ready(Some(Err(failure))) => {
                *progress.failure.borrow_mut() = Some(failure.clone());
                progress.finish();
            }
            // Nobody asks again once the announced length is through.
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => progress.finish(),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
