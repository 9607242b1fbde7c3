//! The Huffman code of HPACK and QPACK (RFC 7541, appendix B).

use std::{collections::HashMap, sync::OnceLock};

/// The end of a string, which must never be written out.
pub const EOS: usize = 256;

/// Bits in the code of each byte, and of [`EOS`]. The code is canonical, so that this says everything.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The code of every symbol: its bits, right-aligned, and their number.
fn codes() -> &'static [(u32, u8); 257] {
    static ONCE: OnceLock<[(u32, u8); 257]> = OnceLock::new();
    ONCE.get_or_init(|| {
        let mut order: Vec<usize> = (0..LENGTHS.len()).collect();
        order.sort_by_key(|&symbol| (LENGTHS[symbol], symbol));
        let (mut codes, mut code, mut length) = ([(0, 0); 257], 0_u32, 0);
        for symbol in order {
            code <<= LENGTHS[symbol] - length;
            length = LENGTHS[symbol];
            codes[symbol] = (code, length);
            code += 1;
        }
        codes
    })
}

/// The code of these symbols without any padding, one character a bit.
pub fn bits(symbols: impl IntoIterator<Item = usize>) -> String {
    symbols
        .into_iter()
        .map(|symbol| {
            let (code, length) = codes()[symbol];
            format!("{code:0width$b}", width = usize::from(length))
        })
        .collect()
}

/// Whole bytes of such bits.
pub fn pack(bits: &str) -> Vec<u8> {
    assert_eq!(bits.len() % 8, 0, "{} bits are no whole bytes", bits.len());
    bits.as_bytes().chunks(8).map(|b| b.iter().fold(0, |n, bit| n << 1 | (bit - b'0'))).collect()
}

/// A string as it should be written: padded with ones.
pub fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits = bits(text.iter().map(|&b| usize::from(b)));
    while bits.len() % 8 != 0 {
        bits.push('1');
    }
    pack(&bits)
}

/// Reads a string; `None` where RFC 7541, section 5.2 calls it an error.
pub fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    static ONCE: OnceLock<HashMap<(u32, u8), usize>> = OnceLock::new();
    let symbols = ONCE.get_or_init(|| codes().iter().enumerate().map(|(s, &code)| (code, s)).collect());
    let (mut out, mut code, mut length) = (Vec::new(), 0_u32, 0_u8);
    for bit in bytes.iter().flat_map(|b| (0..8).rev().map(move |at| b >> at & 1)) {
        (code, length) = (code << 1 | u32::from(bit), length + 1);
        match symbols.get(&(code, length)) {
            Some(&EOS) => return None,
            Some(&symbol) => {
                out.push(symbol as u8);
                (code, length) = (0, 0);
            }
            None if length >= 30 => return None,
            None => {}
        }
    }
    (length < 8 && code == (1 << length) - 1).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendices C.4 and C.6.
    #[test]
    fn the_examples_of_the_rfc() {
        for (text, hex) in [
            ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
            ("no-cache", "a8eb10649cbf"),
            ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
        ] {
            let bytes = encode(text.as_bytes());
            assert_eq!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>(), hex);
            assert_eq!(decode(&bytes).unwrap(), text.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
        assert_eq!(bits([EOS]), "1".repeat(30));
    }

    #[test]
    fn what_is_no_string_is_refused() {
        assert_eq!(decode(&pack(&format!("{}11", bits([EOS])))), None);
        // `a` is 00011.
        assert_eq!(decode(&pack("00011000")), None);
        assert_eq!(decode(&pack("0001111111111111")), None);
    }
}
