//! What comes out is read by decoders of others where there are any: gzip's is not the library that encodes.

use std::io::Read;

use super::*;

const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

/// What can be decoded, and whether it ends as it should.
fn decode(coding: Coding, coded: &[u8]) -> (Vec<u8>, bool) {
    let mut reader: Box<dyn Read> = match coding {
        Coding::Gzip => Box::new(flate2::read::GzDecoder::new(coded)),
        Coding::Brotli => Box::new(brotli::Decompressor::new(coded, 4096)),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(coded).expect("decoder");
            // Nobody needs a larger window than that.
            decoder.window_log_max(17).expect("limit");
            Box::new(decoder)
        }
    };
    let (mut decoded, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return (decoded, true),
            Ok(count) => decoded.extend_from_slice(&buffer[..count]),
            Err(_) => return (decoded, false),
        }
    }
}

fn encode(coding: Coding, data: &[u8], piece: usize) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(coding).expect("encoder"), Vec::new());
    for piece in data.chunks(piece) {
        encoder.write(piece, &mut out).expect("write");
    }
    encoder.finish(&mut out).expect("finish");
    out
}

/// Xorshift: the same noise each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn text(length: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = [
        "silk", "tea", "lane", "drum", "tower", "order", "pending", "shipped",
    ];
    let mut text = Vec::with_capacity(length + 100);
    for (index, byte) in noise(length).into_iter().enumerate() {
        if text.len() >= length {
            break;
        }
        let word = WORDS[usize::from(byte) % WORDS.len()];
        let line = format!("{{\"id\":{index},\"state\":\"{word}\",\"sum\":{byte}}},\n");
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(length);
    text
}

fn same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    assert!(got == expected, "{what}: other bytes");
}

#[test]
fn bodies_come_back_however_they_are_cut() {
    let mixed = [text(300_000), noise(70_000), vec![0; 200_000], text(9)].concat();
    for coding in ALL {
        for (data, piece) in [
            (&mixed[..150_000], 1),
            (&mixed[..], 1 << 10),
            (&mixed[..], 1 << 20),
            (&mixed[..], 16 << 10),
            (&mixed[..], (16 << 10) + 1),
            (&mixed[..1], 1),
            (&mixed[..0], 1),
        ] {
            let (decoded, whole) = decode(coding, &encode(coding, data, piece));
            let what = format!("{coding:?}, {} in pieces of {piece}", data.len());
            assert!(whole, "{what}");
            same(&decoded, data, &what);
        }
    }
}

#[test]
fn large_pieces_come_back() {
    let data = [text(1 << 20), noise(1 << 20), text(1 << 20)].concat();
    for coding in ALL {
        let coded = encode(coding, &data, 1 << 20);
        let (decoded, whole) = decode(coding, &coded);
        assert!(whole);
        same(&decoded, &data, &format!("{coding:?}"));
    }
}

#[test]
fn text_becomes_small_and_noise_hardly_larger() {
    let (text, noise) = (text(200_000), noise(200_000));
    for coding in ALL {
        let small = encode(coding, &text, 5000).len();
        assert!(small < text.len() / 4, "{coding:?}: {small}");
        let large = encode(coding, &noise, 5000).len();
        assert!(
            large < noise.len() + noise.len() / 500,
            "{coding:?}: {large}"
        );
    }
}

#[test]
fn what_was_flushed_can_be_decoded() {
    let data = text(100_000);
    for coding in ALL {
        let (mut encoder, mut out) = (Encoder::new(coding).expect("encoder"), Vec::new());
        // Also before anything, and twice.
        encoder.flush(&mut out).expect("flush");
        let mut at = 0;
        for length in [1, 2, 500, 0, 16 << 10, 5, 40_000, 1, (16 << 10) - 1, 1] {
            encoder
                .write(&data[at..at + length], &mut out)
                .expect("write");
            at += length;
            encoder.flush(&mut out).expect("flush");
            encoder.flush(&mut out).expect("flush");
            let (decoded, whole) = decode(coding, &out);
            same(&decoded, &data[..at], &format!("{coding:?} up to {at}"));
            assert!(!whole, "{coding:?}: half a body looks whole");
        }
        encoder.write(&data[at..], &mut out).expect("write");
        encoder.finish(&mut out).expect("finish");
        assert_eq!(decode(coding, &out), (data.clone(), true), "{coding:?}");
    }
}

#[test]
fn events_arrive_one_by_one() {
    for coding in ALL {
        let (mut encoder, mut out) = (Encoder::new(coding).expect("encoder"), Vec::new());
        let mut expected = Vec::new();
        for index in 0..200 {
            let event = format!("data: {{\"step\":{index}}}\n\n");
            expected.extend_from_slice(event.as_bytes());
            encoder.write(event.as_bytes(), &mut out).expect("write");
            encoder.flush(&mut out).expect("flush");
            same(&decode(coding, &out).0, &expected, &format!("{coding:?}"));
        }
        assert!(out.len() < expected.len() * 2, "{coding:?}: {}", out.len());
    }
}

/// The other half of "memory is bounded": no coding keeps much of what it was given.
#[test]
fn what_goes_in_comes_out_again_soon() {
    let data = noise(1 << 20);
    for coding in ALL {
        let (mut encoder, mut out) = (Encoder::new(coding).expect("encoder"), Vec::new());
        for (index, piece) in data.chunks(10_000).enumerate() {
            encoder.write(piece, &mut out).expect("write");
            let kept = (index * 10_000 + piece.len()).saturating_sub(out.len());
            assert!(kept < 64 << 10, "{coding:?} keeps {kept}");
        }
    }
}

#[test]
fn nothing_in_is_nothing_out_and_an_end() {
    for coding in ALL {
        let (mut encoder, mut out) = (Encoder::new(coding).expect("encoder"), Vec::new());
        encoder.write(&[], &mut out).expect("write");
        assert!(out.is_empty());
        encoder.finish(&mut out).expect("finish");
        assert!((1..=20).contains(&out.len()), "{coding:?}: {}", out.len());
        assert_eq!(decode(coding, &out), (Vec::new(), true));
    }
}

#[test]
fn output_is_put_behind_what_is_there() {
    for coding in ALL {
        let (mut encoder, mut out) = (Encoder::new(coding).expect("encoder"), b"head".to_vec());
        encoder.write(b"body", &mut out).expect("write");
        encoder.finish(&mut out).expect("finish");
        let coded = out.strip_prefix(b"head").expect("still there");
        assert_eq!(decode(coding, coded), (b"body".to_vec(), true));
    }
}

#[test]
fn any_thread_may_go_on_with_it() {
    fn is_send<T: Send>() {}
    is_send::<Encoder>();
}
