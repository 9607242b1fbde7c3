//! Where the frames of a WebSocket begin and end (RFC 6455, section 5.2), so that one of ours can be put between them.

/// "Going away" (RFC 6455, section 7.4.1), from a server: nothing is masked.
pub(super) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// The longest head: two bytes, eight of a length, four of a mask.
const LONGEST: usize = 14;
const CLOSE: u8 = 8;

/// Follows one direction of a WebSocket.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; LONGEST],
    /// So much of the head is here.
    have: usize,
    /// So much of the payload is to come; a head follows.
    left: u64,
    closed: bool,
}

impl Frames {
    /// Takes in what passes; `within` stops where a frame ends. How many bytes that is.
    pub(super) fn pass(&mut self, bytes: &[u8], within: bool) -> usize {
        let mut taken = 0;
        while let Some(byte) = bytes.get(taken).filter(|_| !(within && self.is_between())) {
            if self.left > 0 {
                let rest = (bytes.len() - taken) as u64;
                let passed = rest.min(self.left);
                self.left -= passed;
                // No more than the slice is long.
                taken += passed as usize;
            } else {
                self.add(*byte);
                taken += 1;
            }
        }
        taken
    }

    fn add(&mut self, byte: u8) {
        if let Some(place) = self.head.get_mut(self.have) {
            *place = byte;
            self.have += 1;
        }
        if self.have >= 2 && self.have == self.length_of_head() {
            self.left = self.length_of_payload();
            self.closed |= self.head[0] & 0x0f == CLOSE;
            self.have = 0;
        }
    }

    fn length_of_head(&self) -> usize {
        let extended = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + extended + mask
    }

    fn length_of_payload(&self) -> u64 {
        let [_, short, a, b, c, d, e, f, g, h, ..] = self.head;
        match short & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            short => short.into(),
        }
    }

    /// Nothing of a frame has come that is not whole.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// The server has said goodbye itself.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = match payload {
            0..126 => vec![first, mask | payload as u8],
            126..65_536 => [&[first, mask | 126][..], &(payload as u16).to_be_bytes()].concat(),
            _ => [&[first, mask | 127][..], &(payload as u64).to_be_bytes()].concat(),
        };
        // As payloads may look like anything, this one looks like heads.
        frame.extend(std::iter::repeat_n(0x81, payload + if masked { 4 } else { 0 }));
        frame
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_come(
            sizes in prop::collection::vec((prop_oneof![0_usize..300, 65_000_usize..66_000], any::<bool>()), 1..6),
            pieces in prop::collection::vec(1_usize..70_000, 1..40),
        ) {
            let all: Vec<_> = sizes.iter().map(|(size, masked)| frame(0x82, *size, *masked)).collect();
            let bytes = all.concat();
            let (mut frames, mut at, mut ends) = (Frames::default(), 0, Vec::new());
            for piece in pieces.into_iter().chain([bytes.len()]) {
                let end = (at + piece).min(bytes.len());
                while at < end {
                    // Where a frame has just ended the next one is begun.
                    let within = !frames.is_between();
                    let taken = if within { frames.pass(&bytes[at..end], true) } else { frames.pass(&bytes[at..at + 1], false) };
                    prop_assert!(taken > 0);
                    at += taken;
                    if frames.is_between() {
                        ends.push(at);
                    }
                }
            }
            let expected: Vec<_> = all.iter().scan(0, |sum, frame| { *sum += frame.len(); Some(*sum) }).collect();
            prop_assert_eq!(ends, expected);
            prop_assert!(!frames.is_closed());
        }
    }

    #[test]
    fn who_says_goodbye_is_noticed() {
        let mut frames = Frames::default();
        assert_eq!(frames.pass(&[frame(0x81, 5, false), frame(0x88, 2, true)].concat(), false), 7 + 8);
        assert!(frames.is_closed() && frames.is_between());
    }
}
