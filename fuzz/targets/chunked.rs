//! A chunked body: the same data, end and errors however it is cut, within bounded memory.
#![no_main]

use hutong_fuzz::{cuts, fields};
use hutong_http::Reject;
use hutong_http::chunked::{CHUNK_END, Chunked, LAST_CHUNK, begin_chunk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = read(input, &[input.len()]);
    for ends in cuts::ways(input) {
        assert_eq!(read(input, &ends), whole);
    }
    let answer = whole.refused.map_or(Ok(whole.end.is_some()), Err);
    assert_eq!(Chunked::check(input), answer);
    if let Some(end) = whole.end {
        assert_eq!(Chunked::check(&input[..end]), Ok(true));
    }
    what_was_written_is_read(input);
});

#[derive(Debug, Default, PartialEq)]
struct Read {
    body: Vec<u8>,
    end: Option<usize>,
    refused: Option<Reject>,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// As the gateway reads it: what was consumed is never shown again, the rest is shown with more behind it.
fn read(input: &[u8], ends: &[usize]) -> Read {
    let (mut chunked, mut read, mut from) = (Chunked::default(), Read::default(), 0);
    for end in ends {
        loop {
            let shown = &input[from..*end];
            let step = match chunked.step(shown) {
                Ok(step) => step,
                Err(reject) => {
                    read.refused = Some(reject);
                    return read;
                }
            };
            assert!(step.consumed <= shown.len());
            if !step.data.is_empty() {
                // The gateway hands out the data and takes it as all that was consumed.
                assert_eq!(step.data.end, step.consumed);
                assert!(!step.done);
                read.body.extend_from_slice(&shown[step.data.clone()]);
            }
            assert!(chunked.trailers.size() <= 8 << 10);
            assert_eq!(step.done, chunked.is_done());
            from += step.consumed;
            if step.done {
                read.end = Some(from);
                read.trailers = trailers(&chunked);
                // And nothing behind it.
                let after = chunked.step(input).expect("it is over");
                assert!(after.done && after.consumed == 0 && after.data.is_empty());
                return read;
            }
            if step.consumed == 0 {
                // A line's end or a chunk's is to come: how much is held back is bounded.
                assert!(shown.len() < 8 << 10, "{} bytes", shown.len());
                break;
            }
        }
    }
    read
}

fn trailers(chunked: &Chunked) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields::check(&chunked.trailers);
    for name in ["content-length", "transfer-encoding", "host"] {
        assert!(fields::values(&chunked.trailers, name).is_empty());
    }
    let all = chunked.trailers.iter();
    all.map(|field| (field.name.to_vec(), field.value.to_vec()))
        .collect()
}

/// The input as a body that we send.
fn what_was_written_is_read(body: &[u8]) {
    let [_, ends, _] = cuts::ways(body);
    let (mut text, mut from) = (Vec::new(), 0);
    for end in ends {
        begin_chunk(end - from, &mut text);
        text.extend_from_slice(&body[from..end]);
        text.extend_from_slice(CHUNK_END);
        from = end;
    }
    text.extend_from_slice(LAST_CHUNK);
    let read = read(&text, &[text.len()]);
    assert_eq!((read.end, read.refused), (Some(text.len()), None));
    assert_eq!(read.body, body);
}
