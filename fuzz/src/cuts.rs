//! Where an input is cut, as a connection may cut it. The same input is always cut alike, so that a crash comes
//! again.

/// Inputs up to here are also shown byte by byte.
const SHORT: usize = 512;

/// Some ways to show an input that grows: the lengths that are there, ascending, the whole last.
pub fn ways(input: &[u8]) -> [Vec<usize>; 3] {
    let mut few = pieces(input, input.len() / 4 + 1);
    // A gateway's first read is seldom empty, but it must not matter.
    few.insert(0, 0);
    let close = if input.len() <= SHORT {
        (1..=input.len()).collect()
    } else {
        around_line_ends(input)
    };
    [close, pieces(input, 2 * (input.len() / 64 + 1)), few]
}

/// Pieces of 1 to `longest` bytes.
fn pieces(input: &[u8], longest: usize) -> Vec<usize> {
    // Chosen by a few bytes of it: FNV-1a, then a linear congruential generator.
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let length = (input.len() as u64).to_le_bytes();
    let few = input.iter().take(100).chain(&length);
    let mut state = few.fold(0xcbf2_9ce4_8422_2325, hash);
    let mut ends = Vec::new();
    let mut at = 0;
    while at < input.len() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        at += 1 + (state >> 33) as usize % longest;
        ends.push(at.min(input.len()));
    }
    ends
}

/// Before and behind each of the first CR and LF.
fn around_line_ends(input: &[u8]) -> Vec<usize> {
    let is_end = |at: &usize| matches!(input[*at], b'\r' | b'\n');
    let mut ends: Vec<usize> = (1..input.len())
        .filter(is_end)
        .take(100)
        .flat_map(|at| [at, at + 1])
        .chain([input.len()])
        .collect();
    ends.dedup();
    ends
}
