//! Bytes that tell whose they are and where they stand.

use crate::random::mix;

/// Bytes for a test that keeps them: a hole or a repeat shows.
#[must_use]
pub fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(0, 0, &mut bytes);
    bytes
}

/// A TLS 1.2 ClientHello that asks for `name`; `id` is its random.
#[must_use]
pub fn client_hello(name: &str, id: u64) -> Vec<u8> {
    let name = name.as_bytes();
    let mut extension = Vec::new();
    // server_name (RFC 6066, section 3): a list with one entry of type host_name.
    extension.extend(length(name.len() + 3));
    extension.push(0);
    extension.extend(length(name.len()));
    extension.extend(name);
    let mut hello = vec![3, 3];
    hello.extend(format!("{id:016x}").bytes());
    hello.extend([0x5a; 16]);
    // No session; two cipher suites; no compression.
    hello.extend([0, 0, 4, 0x13, 0x01, 0xc0, 0x2f, 1, 0]);
    hello.extend(length(extension.len() + 4));
    hello.extend([0, 0]);
    hello.extend(length(extension.len()));
    hello.extend(extension);
    let mut record = vec![0x16, 3, 1];
    record.extend(length(hello.len() + 4));
    record.extend([1, 0]);
    record.extend(length(hello.len()));
    record.extend(hello);
    record
}

/// Writes the bytes that connection side `id` sends from `offset` on.
pub(crate) fn fill(id: u64, offset: u64, room: &mut [u8]) {
    for_each_run(id, offset, room.len(), |at, run| {
        room[at..at + run.len()].copy_from_slice(run);
        true
    });
}

/// Whether `bytes` are those that connection side `id` sends from `offset` on.
pub(crate) fn matches(id: u64, offset: u64, bytes: &[u8]) -> bool {
    for_each_run(id, offset, bytes.len(), |at, run| bytes[at..at + run.len()] == *run)
}

/// The number hidden in the first bytes a side sends, whatever its opening; `None` while there are too few.
pub(crate) fn identify(bytes: &[u8]) -> Option<u64> {
    let at = if bytes.first() == Some(&0x16) { 11 } else { 5 };
    let digits = std::str::from_utf8(bytes.get(at..at + 16)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// Goes through the bytes eight at a time, until `each` says no.
fn for_each_run(id: u64, offset: u64, len: usize, mut each: impl FnMut(usize, &[u8]) -> bool) -> bool {
    let mut at = 0;
    while at < len {
        let place = offset + at as u64;
        let word = mix(mix(id).wrapping_add(place / 8)).to_le_bytes();
        let skip = (place % 8) as usize;
        let run = &word[skip..(skip + len - at).min(8)];
        if !each(at, run) {
            return false;
        }
        at += run.len();
    }
    true
}

fn length(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("a short message").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_matches_its_own_place_only() {
        let mut whole = vec![0; 1000];
        fill(7, 0, &mut whole);
        for (start, len) in [(0, 1000), (3, 20), (8, 8), (991, 9), (5, 1)] {
            let piece = &whole[start..start + len];
            assert!(matches(7, start as u64, piece));
            let mut again = vec![0; len];
            fill(7, start as u64, &mut again);
            assert_eq!(piece, again);
        }
        assert!(!matches(7, 1, &whole[..100]));
        assert!(!matches(8, 0, &whole[..100]));
    }

    #[test]
    fn a_client_hello_is_understood_by_the_core() {
        let hello = client_hello("web.tunnel.test", 0xabc);
        let Ok(portal_core::sni::Parsed::Complete(parsed)) = portal_core::sni::parse(&hello) else {
            panic!("not understood");
        };
        assert_eq!(parsed.server_name.as_deref(), Some("web.tunnel.test"));
        assert_eq!(identify(&hello), Some(0xabc));
    }
}
