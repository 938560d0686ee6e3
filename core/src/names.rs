//! DNS labels, and the patterns by which a grant says which of them a key may lease.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest DNS label, in bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// Checks that a text can be a service's name: one DNS label of lower-case letters, digits and inner hyphens
/// (RFC 5890, section 2.3.1), 1 to [`MAX_LABEL`] characters. Labels with `xn--` pass as they are.
pub fn check_label(text: &str) -> Result<(), LabelError> {
    check(text, false)
}

/// Which names a key may lease: a label in which every `*` stands for any number of characters, also none.
///
/// `blog` is that name only, `blog-*` also `blog-2`, and `*` is every name. Texts that are not labels match nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelPattern(String);

impl LabelPattern {
    /// Whether `label` is a label ([`check_label`]) of this pattern. Takes time linear in its length.
    #[must_use]
    pub fn matches(&self, label: &str) -> bool {
        if check_label(label).is_err() {
            return false;
        }
        let Some((prefix, rest)) = self.0.split_once('*') else {
            return self.0 == label;
        };
        let (middle, suffix) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(label) = label.strip_prefix(prefix) else {
            return false;
        };
        let Some(mut label) = label.strip_suffix(suffix) else {
            return false;
        };
        // Taking the first place where a part fits leaves the most for the parts behind it: no way back is needed.
        for part in middle.split('*') {
            match label.find(part) {
                Some(at) => label = &label[at + part.len()..],
                None => return false,
            }
        }
        true
    }

    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LabelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for LabelPattern {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        check(text, true)?;
        Ok(Self(text.to_owned()))
    }
}

impl Serialize for LabelPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LabelPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Why a text is not a label, or not a pattern of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// There is no text.
    #[error("a name cannot be empty")]
    Empty,
    /// There are more than [`MAX_LABEL`] bytes.
    #[error("a name has at most {MAX_LABEL} characters, this has {0}")]
    TooLong(usize),
    /// There is an upper-case letter.
    #[error("a name is written in lower case: {0:?} is not")]
    UpperCase(char),
    /// There is a dot: the text is a domain, not one label of it.
    #[error("a name is one label of a domain and has no dot")]
    Dot,
    /// There is another character that names do not have.
    #[error("a name has letters a-z, digits and hyphens, not {0:?}")]
    BadCharacter(char),
    /// A hyphen comes first or last.
    #[error("a name neither starts nor ends with a hyphen")]
    OuterHyphen,
}

/// Host names are compared in this form: lower case, without the dot that may end them.
///
/// `None` unless it is a list of labels of letters, digits, hyphens inside and underscores (no host name by RFC 1123,
/// but in use) with at most 253 bytes altogether (RFC 1035, section 2.3.4). Dotted IPv4 addresses pass as such.
pub(crate) fn normal_host(host: &[u8]) -> Option<String> {
    let host = host.strip_suffix(b".").unwrap_or(host);
    let label = |label: &[u8]| {
        (1..=MAX_LABEL).contains(&label.len())
            && label
                .iter()
                .all(|&b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && label.first() != Some(&b'-')
            && label.last() != Some(&b'-')
    };
    if host.len() > 253 || !host.split(|&b| b == b'.').all(label) {
        return None;
    }
    Some(std::str::from_utf8(host).ok()?.to_ascii_lowercase())
}

/// What stands between the brackets of an IPv6 literal (RFC 3986, section 3.2.2), in its one canonical form.
///
/// Zones and future versions are not taken: they mean nothing to another host.
pub(crate) fn normal_ipv6(literal: &[u8]) -> Option<String> {
    let address: Ipv6Addr = std::str::from_utf8(literal).ok()?.parse().ok()?;
    Some(address.to_string())
}

fn check(text: &str, wildcards: bool) -> Result<(), LabelError> {
    if text.is_empty() {
        return Err(LabelError::Empty);
    }
    // Before the characters are looked at: the work is bounded.
    if text.len() > MAX_LABEL {
        return Err(LabelError::TooLong(text.len()));
    }
    for c in text.chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => {}
            '*' if wildcards => {}
            '.' => return Err(LabelError::Dot),
            _ if c.is_uppercase() => return Err(LabelError::UpperCase(c)),
            _ => return Err(LabelError::BadCharacter(c)),
        }
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(LabelError::OuterHyphen);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> LabelPattern {
        text.parse().unwrap()
    }

    #[test]
    fn labels() {
        for good in ["a", "0", "blog", "my-blog-2", "xn--bcher-kva", &"a".repeat(63)] {
            assert_eq!(check_label(good), Ok(()), "{good}");
        }
        let bad = |text: &str| check_label(text).unwrap_err();
        assert_eq!(bad(""), LabelError::Empty);
        assert_eq!(bad(&"a".repeat(64)), LabelError::TooLong(64));
        assert_eq!(bad("Blog"), LabelError::UpperCase('B'));
        assert!(bad("Blog").to_string().contains("lower case"));
        assert_eq!(bad("a.b"), LabelError::Dot);
        assert_eq!(bad("a_b"), LabelError::BadCharacter('_'));
        assert_eq!(bad("bücher"), LabelError::BadCharacter('ü'));
        assert_eq!(bad("a*"), LabelError::BadCharacter('*'));
        assert_eq!(bad("-a"), LabelError::OuterHyphen);
        assert_eq!(bad("a-"), LabelError::OuterHyphen);
    }

    #[test]
    fn patterns() {
        for (text, yes, no) in [
            ("blog", &["blog"][..], &["blog2", "log", "blo"][..]),
            ("*", &["a", "blog-2"], &["", "a.b", "A", "-a"]),
            ("**", &["a"], &[""]),
            ("blog-*", &["blog-2", "blog-a-b"], &["blog", "blog-", "xblog-2"]),
            ("blog*", &["blog", "blogs"], &["blo"]),
            ("*-test", &["a-test", "a-test-test"], &["test", "-test", "a-test2"]),
            ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ab", "bc", "ac"]),
            // The prefix and the suffix may not share characters, nor the parts between them.
            ("ab*ba", &["abba", "abxba"], &["aba"]),
            ("a*a*a", &["aaa", "aaaa"], &["aa", "a"]),
        ] {
            for label in yes {
                assert!(pattern(text).matches(label), "{text} {label}");
            }
            for label in no {
                assert!(!pattern(text).matches(label), "{text} {label}");
            }
        }
    }

    #[test]
    fn pattern_texts() {
        assert_eq!("".parse::<LabelPattern>(), Err(LabelError::Empty));
        assert_eq!("Blog-*".parse::<LabelPattern>(), Err(LabelError::UpperCase('B')));
        assert_eq!("*.example".parse::<LabelPattern>(), Err(LabelError::Dot));
        assert_eq!("*-".parse::<LabelPattern>(), Err(LabelError::OuterHyphen));
        assert_eq!("*".repeat(64).parse::<LabelPattern>(), Err(LabelError::TooLong(64)));
        assert_eq!(serde_json::to_string(&pattern("blog-*")).unwrap(), "\"blog-*\"");
        assert_eq!(
            serde_json::from_str::<LabelPattern>("\"blog-*\"").unwrap(),
            pattern("blog-*")
        );
        assert!(serde_json::from_str::<LabelPattern>("\"a b\"").is_err());
    }

    #[test]
    fn hosts() {
        let host = |text: &str| normal_host(text.as_bytes());
        assert_eq!(host("Blog.Example.COM.").as_deref(), Some("blog.example.com"));
        assert_eq!(host("a_b.example").as_deref(), Some("a_b.example"));
        assert_eq!(host("192.0.2.1").as_deref(), Some("192.0.2.1"));
        for bad in [
            "", ".", "a..b", ".a", "a..", "a b", "a:1", "[::1]", "-a.b", "a-.b", "ä.b", "a%2eb", "a/b", "a@b",
        ] {
            assert_eq!(host(bad), None, "{bad}");
        }
        assert_eq!(host(&"a".repeat(64)), None);
        assert!(host(&format!("{}a", "abc.".repeat(63))).is_some());
        assert_eq!(host(&format!("{}ab", "abc.".repeat(63))), None);
        assert_eq!(normal_ipv6(b"2001:DB8:0::1").as_deref(), Some("2001:db8::1"));
        assert_eq!(normal_ipv6(b"fe80::1%eth0"), None);
    }

    /// The plain recursive definition, exponential but right.
    fn by_definition(pattern: &[u8], label: &[u8]) -> bool {
        match pattern.split_first() {
            None => label.is_empty(),
            Some((b'*', rest)) => (0..=label.len()).any(|n| by_definition(rest, &label[n..])),
            Some((c, rest)) => label.first() == Some(c) && by_definition(rest, &label[1..]),
        }
    }

    proptest! {
        #[test]
        fn matches_by_definition(pattern in "[ab*]{1,8}", label in "[ab]{1,10}") {
            let parsed: LabelPattern = pattern.parse().unwrap();
            prop_assert_eq!(parsed.matches(&label), by_definition(pattern.as_bytes(), label.as_bytes()));
            prop_assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }

        #[test]
        fn any_text_is_handled(text in ".{0,80}", bytes: Vec<u8>) {
            prop_assert_eq!(check_label(&text).is_ok(), pattern("*").matches(&text));
            if let Ok(pattern) = text.parse::<LabelPattern>() {
                let _ = pattern.matches(&text);
            }
            let _ = normal_ipv6(&bytes);
            if let Some(host) = normal_host(&bytes) {
                prop_assert_eq!(normal_host(host.as_bytes()), Some(host));
            }
        }
    }
}
