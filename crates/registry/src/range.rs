//! Which bytes: of a blob that is read (`Range`, RFC 9110 section 14), of one that comes in chunks (`Content-Range`,
//! distribution spec "Pushing a blob in chunks").

/// What a `Range` asks of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Whole,
    /// Both ends count.
    Part {
        first: u64,
        last: u64,
    },
    Unsatisfiable,
}

/// One range only: several, other units and what cannot be read are answered with the whole, as RFC 9110 allows. A
/// range that ends before it begins is none either, but the conformance tests want it refused.
pub(crate) fn wanted(range: &str, size: u64) -> Wanted {
    let Some(range) = range.trim().strip_prefix("bytes=") else {
        return Wanted::Whole;
    };
    let Some((first, last)) = range.split_once('-') else {
        return Wanted::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let Some(count) = number(last) else {
            return Wanted::Whole;
        };
        if count == 0 || size == 0 {
            return Wanted::Unsatisfiable;
        }
        return Wanted::Part {
            first: size.saturating_sub(count),
            last: size - 1,
        };
    }
    let (Some(first), Some(last)) = (
        number(first),
        if last.is_empty() {
            Some(u64::MAX)
        } else {
            number(last)
        },
    ) else {
        return Wanted::Whole;
    };
    if first >= size || last < first {
        return Wanted::Unsatisfiable;
    }
    Wanted::Part {
        first,
        last: last.min(size - 1),
    }
}

/// `^[0-9]+-[0-9]+$`, both ends count.
pub(crate) fn content_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-')?;
    Some((number(first)?, number(last)?))
}

/// Digits only; what is too big for the type is too big for any blob.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_in_its_three_forms() {
        let part = |first, last| Wanted::Part { first, last };
        assert_eq!(wanted("bytes=500-1499", 2048), part(500, 1499));
        assert_eq!(wanted("bytes=500-", 2048), part(500, 2047));
        assert_eq!(wanted("bytes=-500", 2048), part(1548, 2047));
        assert_eq!(wanted("bytes=-5000", 2048), part(0, 2047));
        assert_eq!(wanted("bytes=2000-5000", 2048), part(2000, 2047));
        assert_eq!(wanted("bytes=0-0", 1), part(0, 0));
        assert_eq!(
            wanted("bytes=0-99999999999999999999999", 10),
            part(0, 9),
            "a number over 64 bits"
        );
    }

    #[test]
    fn what_lies_outside_is_unsatisfiable() {
        for (range, size) in [
            ("bytes=500-0", 2048),
            ("bytes=2048-", 2048),
            ("bytes=5000-10000", 2048),
            ("bytes=-0", 2048),
            ("bytes=0-", 0),
            ("bytes=-1", 0),
        ] {
            assert_eq!(wanted(range, size), Wanted::Unsatisfiable, "{range}");
        }
    }

    #[test]
    fn what_is_not_understood_asks_for_the_whole() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "bytes=+1-2",
            "items=0-1",
            "bytes=1",
        ] {
            assert_eq!(wanted(range, 100), Wanted::Whole, "{range:?}");
        }
    }

    #[test]
    fn the_range_of_a_chunk_is_two_numbers() {
        assert_eq!(content_range("0-0"), Some((0, 0)));
        assert_eq!(content_range("10-1023"), Some((10, 1023)));
        for bad in ["", "-", "0-", "-1", "bytes 0-1/2", "0-1/2", "a-b", "0 - 1"] {
            assert_eq!(content_range(bad), None, "{bad:?}");
        }
    }
}
