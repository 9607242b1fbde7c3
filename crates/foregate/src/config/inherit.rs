//! Inheritance: defaults -> site -> route, defaults -> pool.
//!
//! In one sentence: tables merge by key, other values replace, "off" removes. Each inheritable section is a
//! struct whose fields may be unsaid, and [`Layer::over`] puts one upon the layer below it.

/// What one layer says of a thing that can be switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Said<T> {
    /// The layer below decides.
    #[default]
    Nothing,
    /// Switched off, whatever the layer below says.
    Off,
    Value(T),
}

impl<T> Said<T> {
    /// This, or what the layer below says.
    pub(super) fn or(self, below: Said<T>) -> Said<T> {
        match self {
            Said::Nothing => below,
            said => said,
        }
    }

    /// The value, if there is one after all layers.
    pub(super) fn value(self) -> Option<T> {
        match self {
            Said::Value(value) => Some(value),
            Said::Nothing | Said::Off => None,
        }
    }

    /// The same where the language has a default.
    pub(super) fn value_or(self, default: Option<T>) -> Option<T> {
        match self {
            Said::Value(value) => Some(value),
            Said::Off => None,
            Said::Nothing => default,
        }
    }

    pub(super) fn as_ref(&self) -> Said<&T> {
        match self {
            Said::Nothing => Said::Nothing,
            Said::Off => Said::Off,
            Said::Value(value) => Said::Value(value),
        }
    }
}

/// A section that may be written on several layers.
pub(super) trait Layer {
    /// This layer's keys, and those of `below` that it does not have.
    fn over(self, below: &Self) -> Self;
}

/// Tables that can be switched off merge where both layers have one.
impl<T: Layer + Clone> Layer for Said<T> {
    fn over(self, below: &Said<T>) -> Said<T> {
        match (self, below) {
            (Said::Value(upper), Said::Value(lower)) => Said::Value(upper.over(lower)),
            (Said::Nothing, below) => below.clone(),
            (said, _) => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Pair(Option<u8>, Option<u8>);

    impl Layer for Pair {
        fn over(self, below: &Pair) -> Pair {
            Pair(self.0.or(below.0), self.1.or(below.1))
        }
    }

    #[test]
    fn tables_merge_and_off_removes() {
        let below = Said::Value(Pair(Some(1), Some(2)));
        assert_eq!(Said::Value(Pair(Some(9), None)).over(&below), Said::Value(Pair(Some(9), Some(2))));
        assert_eq!(Said::Nothing.over(&below), below);
        assert_eq!(Said::Off.over(&below), Said::Off);
        assert_eq!(Said::Value(Pair(None, Some(3))).over(&Said::Off), Said::Value(Pair(None, Some(3))));
    }

    #[test]
    fn values_replace() {
        assert_eq!(Said::Value(1).or(Said::Value(2)), Said::Value(1));
        assert_eq!(Said::Nothing.or(Said::Value(2)).value(), Some(2));
        assert_eq!(Said::<u8>::Off.value_or(Some(7)), None);
        assert_eq!(Said::<u8>::Nothing.value_or(Some(7)), Some(7));
    }
}
