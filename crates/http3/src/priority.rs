//! Extensible priorities (RFC 9218): what a client or a VM says, and what quinn is told.

use std::collections::VecDeque;

/// The parameters of a `priority` field or a PRIORITY_UPDATE frame; `None`: not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Priority {
    /// 0 to 7; lower is more urgent, 3 is what is not said.
    pub urgency: Option<u8>,
    /// Of use in pieces, so that it may share the connection with others of its urgency.
    pub incremental: Option<bool>,
}

/// How far apart two urgencies are; between them is room for the streams of one.
const STEP: i32 = 0x0100_0000;

impl Priority {
    /// Reads the value of a field. What cannot be parsed says nothing (RFC 9218, section 5), and so do
    /// unknown parameters and values out of range.
    #[must_use]
    pub fn parse(value: &str) -> Priority {
        let mut priority = Priority::default();
        for member in value.split(',') {
            let member = member.trim_matches([' ', '\t']);
            // Parameters of a member have no meaning here.
            let member = member.split(';').next().unwrap_or_default();
            match member.split_once('=') {
                Some(("u", digit)) => match digit.as_bytes() {
                    [digit @ b'0'..=b'7'] => priority.urgency = Some(digit - b'0'),
                    [b'-' | b'0'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => {}
                    _ => return Priority::default(),
                },
                Some(("i", "?1")) => priority.incremental = Some(true),
                Some(("i", "?0")) => priority.incremental = Some(false),
                None if member == "i" => priority.incremental = Some(true),
                // Other members, and those of another type.
                Some((key, _)) if is_key(key) => {}
                None if is_key(member) || member.is_empty() => {}
                _ => return Priority::default(),
            }
        }
        priority
    }

    /// What a server says about its response stands above what the client asked for (section 8).
    #[must_use]
    pub fn overridden_by(self, server: Priority) -> Priority {
        Priority {
            urgency: server.urgency.or(self.urgency),
            incremental: server.incremental.or(self.incremental),
        }
    }

    /// The place among a connection's streams, for quinn, which sends higher ones first and takes turns
    /// between equal ones.
    ///
    /// Streams of one urgency are sent one after the other in the order they were opened. Incremental ones
    /// take turns, behind those; so does, once it has had its first `share` of bytes, a response of which
    /// nobody said that it is not incremental: a long download must not hold up all else.
    #[must_use]
    pub(crate) fn place(self, stream_index: u64, share: bool) -> i32 {
        let urgency = i32::from(self.urgency.unwrap_or(3));
        let shared = match self.incremental {
            Some(incremental) => incremental,
            None => share,
        };
        let order = if shared { STEP - 1 } else { (stream_index % (STEP as u64 - 1)) as i32 };
        -(urgency * STEP) - order
    }
}

/// The PRIORITY_UPDATE frames of a connection, the newest of each stream.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    newest: VecDeque<(u64, Priority)>,
    count: u64,
}

impl Updates {
    /// How many streams' updates are remembered; a client may send them for requests it never makes.
    const KEPT: usize = 128;

    pub(crate) fn put(&mut self, stream: u64, priority: Priority) {
        self.newest.retain(|(of, _)| *of != stream);
        if self.newest.len() == Updates::KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back((stream, priority));
        self.count += 1;
    }

    pub(crate) fn of(&self, stream: u64) -> Option<Priority> {
        self.newest.iter().find(|(of, _)| *of == stream).map(|(_, priority)| *priority)
    }

    /// Changes when something was put in.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// RFC 8941, section 3.1.2.
fn is_key(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'*')
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(urgency: Option<u8>, incremental: Option<bool>) -> Priority {
        Priority { urgency, incremental }
    }

    #[test]
    fn values_of_fields() {
        assert_eq!(Priority::parse("u=5, i"), said(Some(5), Some(true)));
        assert_eq!(Priority::parse("i=?0,u=0"), said(Some(0), Some(false)));
        assert_eq!(Priority::parse("u=1;x=2, other=\"y\""), said(Some(1), None));
        assert_eq!(Priority::parse("u=1, u=2"), said(Some(2), None));
        for nothing in ["", "u=8", "u=-1", "u=", "u=1, !", "U=1", "i=1 2,u=?"] {
            assert_eq!(Priority::parse(nothing), Priority::default(), "{nothing}");
        }
    }

    #[test]
    fn the_server_is_heard_last() {
        let client = Priority::parse("u=5, i");
        assert_eq!(client.overridden_by(Priority::parse("u=1")), said(Some(1), Some(true)));
        assert_eq!(client.overridden_by(Priority::default()), client);
    }

    #[test]
    fn updates_are_bounded_and_the_newest_counts() {
        let mut updates = Updates::default();
        for stream in 0..1000 {
            updates.put(stream, said(Some(1), None));
            updates.put(stream, said(Some(2), None));
        }
        assert_eq!(updates.of(0), None);
        assert_eq!(updates.of(999), Some(said(Some(2), None)));
        assert_eq!(updates.newest.len(), Updates::KEPT);
    }

    #[test]
    fn places_follow_urgency_then_order() {
        let urgent = said(Some(0), None).place(900, true);
        let usual = Priority::default();
        assert!(urgent > usual.place(0, false));
        assert!(usual.place(0, false) > usual.place(1, false));
        assert!(usual.place(9, false) > usual.place(0, true));
        assert_eq!(usual.place(1, true), usual.place(2, true));
        assert!(said(None, Some(false)).place(7, true) > said(None, Some(true)).place(0, false));
        assert!(usual.place(0, true) > said(Some(4), None).place(0, false));
    }
}
