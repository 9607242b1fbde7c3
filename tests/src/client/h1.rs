//! HTTP/1.1, written and read by hand, so that every byte is known.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::{Dial, Error, Io, Request, broken};
use crate::{
    fields::Fields,
    wire::{Incoming, Reader, chunk, last_chunk, parse_response},
};

type ReadSide = Reader<ReadHalf<Box<dyn Io>>>;
type WriteSide = WriteHalf<Box<dyn Io>>;

/// Connections that are free for another request.
#[derive(Clone)]
pub(super) struct Pool {
    dial: Dial,
    tls: bool,
    idle: Arc<Mutex<Vec<(ReadSide, WriteSide)>>>,
    dialed: Arc<AtomicUsize>,
}

/// Where the two halves of a connection meet again when both are done.
#[derive(Clone)]
struct Home {
    pool: Pool,
    halves: Arc<Mutex<(Option<ReadSide>, Option<WriteSide>)>>,
}

impl Pool {
    pub(super) async fn connect(dial: &Dial, tls: bool) -> Result<Pool, Error> {
        let pool = Pool { dial: dial.clone(), tls, idle: Arc::default(), dialed: Arc::default() };
        let first = pool.dial().await?;
        pool.idle.lock().unwrap().push(first);
        Ok(pool)
    }

    pub(super) fn dialed(&self) -> usize {
        self.dialed.load(Ordering::SeqCst)
    }

    async fn dial(&self) -> Result<(ReadSide, WriteSide), Error> {
        let (read, write) = tokio::io::split(self.dial.http1(self.tls).await?);
        self.dialed.fetch_add(1, Ordering::SeqCst);
        Ok((Reader::new(read), write))
    }

    pub(super) async fn open(&self, request: &Request) -> Result<(Up, Down), Error> {
        let idle = self.idle.lock().unwrap().pop();
        let (reader, mut writer) = match idle {
            Some(halves) => halves,
            None => self.dial().await?,
        };
        let chunked = !request.announced && request.body.length().is_some() || !request.trailers.is_empty();
        let mut out = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.target, request.host)
            .into_bytes();
        request.fields.write_to(&mut out);
        if chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        } else if let Some(length) = request.body.length() {
            out.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        writer.write_all(&out).await.map_err(broken)?;
        let home = Home { pool: self.clone(), halves: Arc::default() };
        let up = Up { writer: Some(writer), chunked, home: home.clone() };
        Ok((up, Down { reader: Some(reader), body: None, persistent: true, trailers: Fields::new(), home }))
    }
}

impl Home {
    fn settle(&self) {
        let mut halves = self.halves.lock().unwrap();
        if let (Some(_), Some(_)) = (&halves.0, &halves.1) {
            let whole = (halves.0.take().expect("checked"), halves.1.take().expect("checked"));
            self.pool.idle.lock().unwrap().push(whole);
        }
    }
}

pub(super) struct Up {
    writer: Option<WriteSide>,
    chunked: bool,
    home: Home,
}

impl Up {
    pub(super) async fn data(&mut self, piece: Bytes) -> Result<(), Error> {
        let writer = self.writer.as_mut().ok_or_else(|| broken("the body has ended"))?;
        let written = if self.chunked {
            writer.write_all(&chunk(&piece)).await
        } else {
            writer.write_all(&piece).await
        };
        written.map_err(broken)
    }

    pub(super) async fn finish(&mut self, trailers: &Fields) -> Result<(), Error> {
        let mut writer = self.writer.take().ok_or_else(|| broken("the body has ended"))?;
        if self.chunked {
            writer.write_all(&last_chunk(trailers)).await.map_err(broken)?;
        }
        writer.flush().await.map_err(broken)?;
        self.home.halves.lock().unwrap().1 = Some(writer);
        self.home.settle();
        Ok(())
    }
}

pub(super) struct Down {
    reader: Option<ReadSide>,
    body: Option<Incoming>,
    persistent: bool,
    trailers: Fields,
    home: Home,
}

impl Down {
    pub(super) async fn head(&mut self, method: &str) -> Result<(u16, Fields), Error> {
        let reader = self.reader.as_mut().ok_or_else(|| broken("cancelled"))?;
        let head = reader.head().await.map_err(broken)?.ok_or_else(|| broken("closed without a response"))?;
        let (status, minor, fields) = parse_response(&head).map_err(broken)?;
        if minor != 1 {
            return Err(broken(format!("a response in HTTP/1.{minor}")));
        }
        if status >= 200 || status == 101 {
            let body = Incoming::response(method, status, &fields).map_err(broken)?;
            self.persistent = !fields.lists("connection", "close") && !body.until_close() && status != 101;
            self.body = Some(body);
        }
        Ok((status, fields))
    }

    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(body) = self.body.as_mut() else { return Err(broken("no head was read")) };
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        if let Some(piece) = reader.data(body).await.map_err(broken)? {
            return Ok(Some(piece));
        }
        self.trailers = body.trailers.clone();
        let reader = self.reader.take();
        if self.persistent {
            self.home.halves.lock().unwrap().0 = reader;
            self.home.settle();
        }
        Ok(None)
    }

    pub(super) fn trailers(&self) -> Fields {
        self.trailers.clone()
    }
}

/// Closes the connection: both halves must go for that.
pub(super) fn cut(up: &mut Up, down: &mut Down) {
    up.writer = None;
    down.reader = None;
    *down.home.halves.lock().unwrap() = (None, None);
}
