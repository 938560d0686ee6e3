//! From the path of a request to names below the root.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    path::{Component, Path, PathBuf},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// Everything but RFC 3986's unreserved characters, so that no name is read as a scheme, a query or a second segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The only dotted name that is published: RFC 8615 puts it there to be found.
const WELL_KNOWN: &str = ".well-known";

/// A request's path, taken apart and decoded exactly once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestPath {
    /// The names below the root, none of which leads upwards; empty for the root itself.
    pub(super) below: PathBuf,
    /// Whether the path ended in `/`, as the path of a folder must.
    pub(super) folder: bool,
}

impl RequestPath {
    /// Reads the path of a request target; `None` means that nothing can be there.
    ///
    /// It is split at `/` before it is decoded, so that `%2f` can only be part of a name, where it is refused. Empty
    /// names are refused too: collapsing them would let a redirect begin with `//`, which names another host.
    pub(super) fn parse(raw: &str) -> Option<Self> {
        let raw = raw.strip_prefix('/')?;
        if raw.is_empty() {
            return Some(Self {
                below: PathBuf::new(),
                folder: true,
            });
        }
        let (raw, folder) = match raw.strip_suffix('/') {
            Some(rest) => (rest, true),
            None => (raw, false),
        };
        let below = raw.split('/').map(decode).collect::<Option<PathBuf>>()?;
        Some(Self { below, folder })
    }

    /// The address of this path as a folder, for a redirect.
    pub(super) fn folder_address(&self) -> String {
        self.below.iter().fold("/".to_owned(), |mut address, name| {
            // Writing to a string cannot fail.
            let _ = write!(address, "{}/", encode(name));
            address
        })
    }
}

/// Whether a name is kept from visitors: one that starts with a dot, `.well-known` excepted.
pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") && name != WELL_KNOWN
}

/// Whether any name of a path is kept from visitors.
pub(super) fn any_hidden(path: &Path) -> bool {
    path.iter().any(is_hidden)
}

/// One name, as a segment of an address.
pub(super) fn encode(name: &OsStr) -> String {
    percent_encode(name.as_encoded_bytes(), SEGMENT).to_string()
}

/// One segment of an address, as a name; `None` unless it is exactly one ordinary path component.
fn decode(segment: &str) -> Option<OsString> {
    let name: Vec<u8> = percent_decode_str(segment).collect();
    // A NUL would end the name early in the system call. On Windows a backslash separates and a colon names a drive or
    // a stream; elsewhere both are ordinary.
    if name.contains(&0) || (cfg!(windows) && name.iter().any(|byte| matches!(byte, b'\\' | b':'))) {
        return None;
    }
    let name = from_bytes(name)?;
    let mut components = Path::new(&name).components();
    match (components.next(), components.next()) {
        // The comparison refuses what the iterator tidies away, such as a separator at the end.
        (Some(Component::Normal(only)), None) if only == name => Some(name),
        _ => None,
    }
}

#[cfg(unix)]
fn from_bytes(name: Vec<u8>) -> Option<OsString> {
    Some(std::os::unix::ffi::OsStringExt::from_vec(name))
}

#[cfg(not(unix))]
fn from_bytes(name: Vec<u8>) -> Option<OsString> {
    String::from_utf8(name).ok().map(OsString::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(raw: &str) -> Option<(String, bool)> {
        RequestPath::parse(raw).map(|path| (path.below.to_string_lossy().into_owned(), path.folder))
    }

    #[test]
    fn ordinary_paths() {
        assert_eq!(parsed("/"), Some((String::new(), true)));
        assert_eq!(parsed("/a/b.txt"), Some(("a/b.txt".into(), false)));
        assert_eq!(parsed("/a%20b/"), Some(("a b".into(), true)));
        assert_eq!(parsed("/100%"), Some(("100%".into(), false)));
        assert_eq!(parsed("/%2561"), Some(("%61".into(), false)), "decoded once");
    }

    #[test]
    fn nothing_leads_upwards() {
        for raw in [
            "",
            "a",
            "*",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/../a",
            "/a/..",
            "/a/./b",
            "/%2e",
            "/%2e%2E/a",
            "/.%2e",
            "/%2f",
            "/%2fetc",
            "/a%2f",
            "/a%2f..%2fb",
            "/a%00",
            "/%00",
        ] {
            assert_eq!(parsed(raw), None, "{raw}");
        }
    }

    #[test]
    fn folder_addresses_stay_on_this_host() {
        let address = |raw| RequestPath::parse(raw).unwrap().folder_address();
        assert_eq!(address("/a b/%c3%a4%3f"), "/a%20b/%C3%A4%3F/");
        #[cfg(unix)]
        assert_eq!(address("/%5cevil.example"), "/%5Cevil.example/");
    }

    #[test]
    fn dotted_names_are_hidden() {
        for (path, hidden) in [
            ("a/.git/b", true),
            (".well-known/x", false),
            (".well-known/.x", true),
            ("a.b/c", false),
        ] {
            assert_eq!(any_hidden(Path::new(path)), hidden, "{path}");
        }
    }
}
