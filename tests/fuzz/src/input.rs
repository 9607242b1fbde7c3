//! Choices out of bytes. Every input means something: where it has ended, it says zero.

/// What is left of an input.
pub(crate) struct Input<'i>(pub(crate) &'i [u8]);

impl<'i> Input<'i> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// As many bytes, or as there are.
    pub(crate) fn take(&mut self, count: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// What is left in pieces of these lengths, over and over.
    pub(crate) fn pieces(&self, lengths: [u8; 4]) -> Vec<&'i [u8]> {
        let mut rest = self.0;
        let mut pieces = Vec::new();
        for length in lengths.into_iter().cycle().take(rest.len() * 4) {
            let (piece, more) = rest.split_at(usize::from(length).min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        pieces
    }
}
