//! Accept-Encoding (RFC 9110 §12.5.3). It is no reason to refuse a request: what makes no sense in it is
//! overlooked, and in doubt the answer goes out as it is.

use hutong_http::fields::{Fields, Name, is_token};

use super::Coding;

/// In thousandths; 0 forbids.
type Weight = u16;

/// What is weighed without `q`.
const FULL: Weight = 1000;

/// What a client says of each coding; `None`: nothing.
#[derive(Default)]
struct Wishes {
    gzip: Option<Weight>,
    brotli: Option<Weight>,
    zstd: Option<Weight>,
    identity: Option<Weight>,
    /// `*`: all the others. No coding at all is not among them.
    any: Option<Weight>,
}

/// The coding the client likes best among `offered`, whose order decides between equals. `None`: the answer
/// is better sent as it is, which is also right where a client forbids that but accepts nothing of ours.
pub fn negotiate(fields: &Fields, offered: &[Coding]) -> Option<Coding> {
    let wishes = Wishes::read(fields);
    let mut best = None;
    let mut most = 0;
    for coding in offered {
        let weight = wishes.weight(*coding);
        if weight > most {
            (best, most) = (Some(*coding), weight);
        }
    }
    best.filter(|_| most >= wishes.identity.unwrap_or(0))
}

impl Wishes {
    fn read(fields: &Fields) -> Self {
        let mut wishes = Wishes::default();
        for (name, weight) in fields.members(Name::AcceptEncoding).filter_map(parse) {
            if let Some(place) = wishes.place(name) {
                // Said twice: the more careful one holds.
                *place = Some(place.map_or(weight, |before| before.min(weight)));
            }
        }
        wishes
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<Weight>> {
        match Coding::of(name) {
            Some(Coding::Gzip) => Some(&mut self.gzip),
            Some(Coding::Brotli) => Some(&mut self.brotli),
            Some(Coding::Zstd) => Some(&mut self.zstd),
            None if name.eq_ignore_ascii_case(b"identity") => Some(&mut self.identity),
            None if name == b"*" => Some(&mut self.any),
            None => None,
        }
    }

    fn weight(&self, coding: Coding) -> Weight {
        let said = match coding {
            Coding::Gzip => self.gzip,
            Coding::Brotli => self.brotli,
            Coding::Zstd => self.zstd,
        };
        said.or(self.any).unwrap_or(0)
    }
}

/// `codings [ OWS ";" OWS "q=" qvalue ]`.
fn parse(member: &[u8]) -> Option<(&[u8], Weight)> {
    let mut parts = member.splitn(2, |byte| *byte == b';');
    let name = parts.next()?.trim_ascii();
    let weight = match parts.next().map(<[u8]>::trim_ascii) {
        None => FULL,
        Some([b'q' | b'Q', b'=', value @ ..]) => parse_weight(value)?,
        Some(_) => return None,
    };
    is_token(name).then_some((name, weight))
}

/// `( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )` (RFC 9110 §12.4.2).
fn parse_weight(value: &[u8]) -> Option<Weight> {
    let (whole, digits) = match value {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', digits @ ..] => (whole, digits),
        _ => return None,
    };
    if digits.len() > 3 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let thousandths = digits.iter().chain([b'0'; 3].iter()).take(3);
    let weight = thousandths.fold(Weight::from(whole - b'0'), |weight, digit| {
        weight * 10 + Weight::from(digit - b'0')
    });
    (weight <= FULL).then_some(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLY: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];
    const FILES: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

    fn said(lines: &[&str], offered: &[Coding]) -> &'static str {
        let mut fields = Fields::default();
        for line in lines {
            fields.push(b"Accept-Encoding", line.as_bytes());
        }
        negotiate(&fields, offered).map_or("-", Coding::name)
    }

    #[test]
    fn one_line_on_the_fly_and_for_files() {
        for (line, fly, files) in [
            // What browsers and tools send.
            ("gzip, deflate, br, zstd", "zstd", "br"),
            ("gzip, deflate, br", "br", "br"),
            ("gzip, deflate", "gzip", "gzip"),
            ("gzip", "gzip", "gzip"),
            ("deflate", "-", "-"),
            ("identity", "-", "-"),
            ("", "-", "-"),
            ("*", "zstd", "br"),
            ("gzip;q=1.0, *;q=0.5", "gzip", "gzip"),
            ("deflate, gzip;q=1.0, *;q=0.5", "gzip", "gzip"),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", "br", "br"),
            ("identity, gzip;q=0.001", "-", "-"),
            // Weights.
            ("zstd;q=0.5, gzip;q=0.9", "gzip", "gzip"),
            ("zstd;q=0.5, br;q=0.5, gzip;q=0.5", "zstd", "br"),
            ("br;q=0.999, zstd;q=0.998", "br", "br"),
            ("zstd;q=0, br;q=0, gzip", "gzip", "gzip"),
            ("gzip;q=0", "-", "-"),
            ("gzip;q=0.0, gzip;q=0.000", "-", "-"),
            ("gzip;q=0.", "-", "-"),
            ("gzip;q=1.", "gzip", "gzip"),
            ("gzip;q=1.000", "gzip", "gzip"),
            ("gzip;q=0.001", "gzip", "gzip"),
            // The others, and none at all.
            ("*;q=0", "-", "-"),
            ("*;q=0, gzip", "gzip", "gzip"),
            ("gzip;q=0, *", "zstd", "br"),
            ("zstd;q=0, br;q=0, *", "gzip", "gzip"),
            ("zstd;q=0, br;q=0, gzip;q=0, *", "-", "-"),
            ("gzip;q=0.5, identity", "-", "-"),
            ("gzip;q=0.5, identity;q=0.5", "gzip", "gzip"),
            ("gzip;q=0.5, identity;q=0.4", "gzip", "gzip"),
            ("identity;q=0", "-", "-"),
            ("identity;q=0, *", "zstd", "br"),
            ("compress, identity;q=0", "-", "-"),
            ("identity, *;q=0.5", "-", "-"),
            // Spelling.
            ("GZip", "gzip", "gzip"),
            ("x-gzip", "gzip", "gzip"),
            ("BR;Q=0.5 , ZSTD ;\tq=0.4", "br", "br"),
            ("gzip ; q=0.5,br ;q=0.6", "br", "br"),
            (",, gzip ,,", "gzip", "gzip"),
            // Twice: the more careful one.
            ("gzip, gzip;q=0", "-", "-"),
            ("gzip;q=0, gzip", "-", "-"),
            ("x-gzip;q=0, gzip", "-", "-"),
            // Nonsense is overlooked.
            ("gzip;q=2, br;q=0.1", "br", "br"),
            ("gzip;q=1.001", "-", "-"),
            ("gzip;q=0.0001", "-", "-"),
            ("gzip;q=0.1234, br;q=0.1", "br", "br"),
            ("gzip;q=-1", "-", "-"),
            ("gzip;q=", "-", "-"),
            ("gzip;q=.5", "-", "-"),
            ("gzip;q=0,5", "-", "-"),
            ("gzip;q= 0.5", "-", "-"),
            ("gzip;level=9", "-", "-"),
            ("gzip;q=0.5;level=9", "-", "-"),
            ("gzip;", "-", "-"),
            (";q=1", "-", "-"),
            ("gz ip, br", "br", "br"),
            ("gzip\u{fc}, br", "br", "br"),
            ("gzipped, brotli, zstandard", "-", "-"),
            ("\"gzip\"", "-", "-"),
            ("identity;q=nonsense, gzip;q=0.1", "gzip", "gzip"),
        ] {
            assert_eq!(said(&[line], &FLY), fly, "{line:?} on the fly");
            assert_eq!(said(&[line], &FILES), files, "{line:?} for files");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        assert_eq!(said(&[], &FLY), "-");
        assert_eq!(said(&["gzip", "br"], &FLY), "br");
        assert_eq!(said(&["gzip;q=1", "", "br;q=0.5"], &FLY), "gzip");
        assert_eq!(said(&["*", "zstd;q=0"], &FLY), "br");
        assert_eq!(said(&["gzip", "identity;q=1", "gzip;q=0.9"], &FLY), "-");
    }

    #[test]
    fn only_what_is_offered_is_chosen() {
        let line = ["gzip, br, zstd"];
        assert_eq!(said(&line, &[]), "-");
        assert_eq!(said(&line, &[Coding::Gzip]), "gzip");
        assert_eq!(said(&["*"], &[Coding::Gzip]), "gzip");
        assert_eq!(said(&["br"], &[Coding::Gzip, Coding::Zstd]), "-");
        // The one that is liked better is not there.
        let line = ["br, gzip;q=0.1"];
        assert_eq!(said(&line, &[Coding::Gzip, Coding::Zstd]), "gzip");
    }
}
