//! A request target becomes what the standard says, or is refused, and nothing is left to be resolved by an app.
#![no_main]

use hutong_fuzz::reference;
use hutong_http::path::normalise;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut out = String::from("/before");
    let Ok(length) = normalise(input, &mut out) else {
        assert_eq!(reference::target(input), None, "refused without a reason");
        return;
    };
    let target = out.strip_prefix("/before").expect("it only adds");
    assert_eq!(Some(target), reference::target(input).as_deref());
    let (path, query) = target.split_at(length);
    assert!(path.starts_with('/') && !path.contains('?'));
    assert!(query.is_empty() || query.starts_with('?'));
    assert!(input.ends_with(query.as_bytes()), "a query stays as it is");
    assert!(!reference::has_dot_segment(path), "{path}");
    assert!(target.len() <= input.len());

    for text in [input, target.as_bytes()] {
        let mut again = String::new();
        assert_eq!((normalise(text, &mut again), &*again), (Ok(length), target));
    }
});
