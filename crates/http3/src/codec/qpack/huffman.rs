//! The Huffman code of RFC 7541, appendix B, which QPACK shares with HPACK.
//!
//! The code is canonical: the lengths of the 257 symbols say everything, so the tables are made from them
//! at compile time.

use super::Problem;

/// End of string: may stand only as padding, never whole.
const EOS: usize = 256;
const LONGEST: usize = 30;
/// Codes up to this many bits are decoded by one look-up; they are what field values are made of.
const QUICK: u32 = 9;

/// The length in bits of each symbol's code.
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

/// Symbol and code length for what the next [`QUICK`] bits are; length 0 where the code is longer.
static QUICK_CODES: [(u8, u8); 1 << QUICK] = TABLES.quick;
/// For each length the first code, aligned to the left of 32 bits, that is *longer* than it.
static BEYOND: [u32; LONGEST + 1] = TABLES.beyond;
/// For each length: what to add to a code to find its place in [`BY_CODE`].
static OFFSETS: [i32; LONGEST + 1] = TABLES.offsets;
/// The symbols in the order of their codes.
static BY_CODE: [u16; 257] = TABLES.by_code;
/// Each byte's code, aligned to the right.
static CODES: [u32; 257] = TABLES.codes;

struct Tables {
    quick: [(u8, u8); 1 << QUICK],
    beyond: [u32; LONGEST + 1],
    offsets: [i32; LONGEST + 1],
    by_code: [u16; 257],
    codes: [u32; 257],
}

const TABLES: Tables = tables();

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse it")]
const fn tables() -> Tables {
    let mut tables = Tables {
        quick: [(0, 0); 1 << QUICK],
        beyond: [0; LONGEST + 1],
        offsets: [0; LONGEST + 1],
        by_code: [0; 257],
        codes: [0; 257],
    };
    let mut code: u64 = 0;
    let mut place = 0;
    let mut length = 1;
    while length <= LONGEST {
        code <<= 1;
        tables.offsets[length] = place - code as i32;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                tables.codes[symbol] = code as u32;
                tables.by_code[place as usize] = symbol as u16;
                if length as u32 <= QUICK {
                    let spare = QUICK - length as u32;
                    let mut tail = 0;
                    while tail < 1 << spare {
                        tables.quick[((code << spare) | tail) as usize] = (symbol as u8, length as u8);
                        tail += 1;
                    }
                }
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        let beyond = code << (32 - length);
        tables.beyond[length] = if beyond > u32::MAX as u64 { u32::MAX } else { beyond as u32 };
        length += 1;
    }
    tables
}

/// The most bytes that so many encoded ones can stand for: the shortest code has five bits.
pub(super) const fn decoded_bound(encoded: usize) -> usize {
    encoded.saturating_mul(8) / 5
}

/// Appends what the bytes stand for.
///
/// # Errors
/// EOS within the string, padding that is not a prefix of EOS or longer than seven bits (RFC 7541, 5.2).
pub(super) fn decode(encoded: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
    // The unread bits stand at the top.
    let mut window: u64 = 0;
    let mut held: u32 = 0;
    let mut rest = encoded.iter();
    loop {
        while held <= 56 {
            let Some(byte) = rest.next() else { break };
            window |= u64::from(*byte) << (56 - held);
            held += 8;
        }
        let (symbol, length) = match QUICK_CODES.get((window >> (64 - QUICK)) as usize) {
            Some((symbol, length)) if *length > 0 => (usize::from(*symbol), u32::from(*length)),
            _ => long(window),
        };
        if length > held {
            // The rest must be padding: fewer than eight bits, all ones.
            return if held < 8 && window == padding(held) { Ok(()) } else { Err(Problem::Huffman) };
        }
        let Ok(byte) = u8::try_from(symbol) else {
            debug_assert_eq!(symbol, EOS);
            return Err(Problem::Huffman);
        };
        out.push(byte);
        window <<= length;
        held -= length;
    }
}

/// `bits` ones at the top.
const fn padding(bits: u32) -> u64 {
    if bits == 0 { 0 } else { u64::MAX << (64 - bits) }
}

/// A code longer than [`QUICK`] bits.
#[cold]
fn long(window: u64) -> (usize, u32) {
    let top = (window >> 32) as u32;
    for length in QUICK + 1..=LONGEST as u32 {
        let at = length as usize;
        let last = at == LONGEST;
        if last || BEYOND.get(at).is_some_and(|beyond| top < *beyond) {
            let code = (top >> (32 - length)) as i32;
            let place = OFFSETS.get(at).map_or(0, |offset| code + offset);
            let symbol = usize::try_from(place).ok().and_then(|place| BY_CODE.get(place));
            return (symbol.map_or(EOS, |symbol| usize::from(*symbol)), length);
        }
    }
    (EOS, LONGEST as u32)
}

/// How many bytes the text takes when encoded.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize =
        text.iter().map(|byte| LENGTHS.get(usize::from(*byte)).map_or(0, |n| usize::from(*n))).sum();
    bits.div_ceil(8)
}

pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let mut window: u64 = 0;
    let mut held: u32 = 0;
    for byte in text {
        let at = usize::from(*byte);
        let (Some(code), Some(length)) = (CODES.get(at), LENGTHS.get(at)) else { continue };
        let length = u32::from(*length);
        window = (window << length) | u64::from(*code);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((window >> held) as u8);
        }
    }
    if held > 0 {
        let spare = 8 - held;
        out.push(((window << spare) as u8) | ((1 << spare) - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(encoded: &[u8]) -> Result<Vec<u8>, Problem> {
        let mut out = Vec::new();
        decode(encoded, &mut out).map(|()| out)
    }

    /// RFC 7541, appendix C.4 and C.6.
    #[test]
    fn examples_of_the_rfc() {
        let examples: [(&str, &[u8]); 4] = [
            ("www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
            ("no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            ("custom-value", &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf]),
            ("307", &[0x64, 0x0e, 0xff]),
        ];
        for (text, bytes) in examples {
            let mut out = Vec::new();
            encode(text.as_bytes(), &mut out);
            assert_eq!(out, bytes, "{text}");
            assert_eq!(encoded_len(text.as_bytes()), bytes.len());
            assert_eq!(decoded(bytes).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        encode(&all, &mut out);
        assert_eq!(decoded(&out).unwrap(), all);
    }

    #[test]
    fn bad_padding_and_eos_are_refused() {
        // 'a' is 00011; zeros as padding.
        assert_eq!(decoded(&[0b0001_1000]), Err(Problem::Huffman));
        // A whole byte of ones is padding that should not be there.
        assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(Problem::Huffman));
        // EOS itself.
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Problem::Huffman));
        // A long code cut short.
        assert_eq!(decoded(&[0xff, 0xf0]), Err(Problem::Huffman));
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: Vec<u8>) {
            let mut out = Vec::new();
            encode(&text, &mut out);
            prop_assert_eq!(out.len(), encoded_len(&text));
            prop_assert!(text.len() <= decoded_bound(out.len()));
            prop_assert_eq!(decoded(&out).unwrap(), text);
        }

        #[test]
        fn any_bytes_end_in_text_or_an_error(bytes: Vec<u8>) {
            let mut out = Vec::new();
            _ = decode(&bytes, &mut out);
            prop_assert!(out.len() <= decoded_bound(bytes.len()));
        }
    }
}
