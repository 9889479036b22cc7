//! Names and values out of any bytes.

pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// The first byte separates the names and values that follow it. Every eighth time they are repeated until they go
/// beyond 64 KiB, which is a bound of the protocols that carry them.
pub fn split(input: &[u8]) -> Vec<Pair<'_>> {
    let pairs = split_once(input);
    let times = match input.len() % 8 {
        0 => (66 << 10) / (input.len() + 1),
        _ => 1,
    };
    pairs.repeat(times)
}

fn split_once(input: &[u8]) -> Vec<Pair<'_>> {
    let Some((separator, rest)) = input.split_first() else {
        return Vec::new();
    };
    let mut texts = rest.split(|byte| byte == separator);
    let mut pairs = Vec::new();
    while let Some(name) = texts.next() {
        pairs.push((name, texts.next().unwrap_or_default()));
    }
    pairs
}
