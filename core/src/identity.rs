//! Who is who: X25519 keys in WireGuard's text form, and the address, name and port that follow from a key.
//!
//! Everything derived here is a pure function of the key, so that it stays the same over restarts with no database.

use std::fmt;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use blake2::{Blake2s256, Digest as _};
use boringtun::x25519;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A peer's identity: its X25519 public key (RFC 7748).
///
/// Its text form, in [`fmt::Display`], [`FromStr`] and serde alike, is that of `wg`: 44 characters of base64, padding
/// included. Reading ignores white space around it and accepts nothing but the canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// The key with these bytes. Every 32 bytes are a key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The peer's address inside the tunnel: `fd` (RFC 4193) followed by the first 15 bytes of
    /// BLAKE2s-256("portal overlay 1" ‖ key).
    #[must_use]
    pub fn overlay_address(&self) -> Ipv6Addr {
        let digest = derive("portal overlay 1", self, "");
        let mut octets = [0xfd; 16];
        octets[1..].copy_from_slice(&digest[..15]);
        Ipv6Addr::from(octets)
    }

    /// The first 8 characters of the text form: enough to tell peers apart in a log, not to identify one.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = STANDARD.encode(self.0);
        text.truncate(8);
        text
    }

    /// The key as it stands in a relay URI: 43 characters of base64url without padding (RFC 4648, section 5).
    #[must_use]
    pub fn url_safe(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads what [`PublicKey::url_safe`] writes. White space is not ignored: it has no place inside a URI.
    pub fn from_url_safe(text: &str) -> Result<Self, KeyError> {
        decode(&URL_SAFE_NO_PAD, text, 43, KeyError::NotBase64Url).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(&STANDARD, text.trim(), 44, KeyError::NotBase64).map(Self)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The secret half of an identity: an X25519 scalar (RFC 7748), clamped as `wg genkey` does.
///
/// Dropping it overwrites the bytes in place. Copies that the compiler made while moving it, and the texts and arrays
/// that callers make from it, are not overwritten.
#[derive(Clone)]
pub struct SecretKey(x25519::StaticSecret);

impl SecretKey {
    /// The key made from these bytes, which should come from the system's random generator. Any 32 bytes do: they are
    /// clamped (RFC 7748, section 5), so [`SecretKey::as_bytes`] may differ from what was given.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[31] &= 0b0111_1111;
        bytes[31] |= 0b0100_0000;
        Self(x25519::StaticSecret::from(bytes))
    }

    /// The clamped bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The text for a key file, as `wg genkey` prints it, without a line end.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.as_bytes())
    }

    /// The public half, as `wg pubkey` computes it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }
}

/// Says that there is a key, never which.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// Reads what `wg genkey` or [`SecretKey::to_base64`] wrote; white space around it is ignored.
impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(&STANDARD, text.trim(), 44, KeyError::NotBase64).map(Self::from_bytes)
    }
}

/// A secret that two peers share on top of their keys, as `wg genpsk` makes it: recorded traffic stays closed to whoever
/// may break Curve25519 one day (WireGuard paper, section 5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PresharedKey {
    /// The key with these bytes, which should come from the system's random generator.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text for a key file, as `wg genpsk` prints it, without a line end.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

/// Says that there is a key, never which.
impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// Reads what `wg genpsk` wrote; white space around it is ignored.
impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(&STANDARD, text.trim(), 44, KeyError::NotBase64).map(Self)
    }
}

/// Why a text is not a key. Never repeats the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is longer or shorter than a key's.
    #[error("a key has {expected} characters, this text has {found}")]
    Length {
        /// How many characters a key has in this form.
        expected: usize,
        /// How many the text has.
        found: usize,
    },
    /// The text has a character outside the alphabet, or its padding is not that of 32 bytes.
    #[error("it is not 32 bytes of base64 (A-Z a-z 0-9 + / =)")]
    NotBase64,
    /// The same of the form for URIs.
    #[error("it is not 32 bytes of base64url (A-Z a-z 0-9 - _, no padding)")]
    NotBase64Url,
    /// The last character carries bits that no key has, so part of the text was changed or cut off.
    #[error("its last character cannot end a key: the text was changed or cut")]
    NotCanonical,
}

/// The name a service gets without asking for one: a DNS label of 10 characters, stable for a key and a service id.
///
/// From BLAKE2s-256("portal name 1" ‖ key ‖ service). The first character is a letter. The alphabet has nothing that
/// looks like something else (`0 1 i l o`) and no vowels, so that no words come out. About 47 bits: collisions between
/// keys are improbable but possible, and the lease table decides them.
#[must_use]
pub fn derived_name(key: &PublicKey, service: &str) -> String {
    const LETTERS: usize = 20;
    const ALPHABET: &[u8; 28] = b"bcdfghjkmnpqrstvwxyz23456789";

    let mut rest = number(&derive("portal name 1", key, service));
    let mut name = String::with_capacity(10);
    for i in 0..10 {
        let choices = if i == 0 { LETTERS } else { ALPHABET.len() };
        name.push(char::from(ALPHABET[(rest % choices as u128) as usize]));
        rest /= choices as u128;
    }
    name
}

/// The public port a service gets without asking for one: a port of `range`, stable for a key and a service id.
///
/// From BLAKE2s-256("portal port 1" ‖ key ‖ service). Keys collide often in a small range; the lease table looks for
/// the next free port then. An empty range gives its start.
#[must_use]
pub fn derived_port(key: &PublicKey, service: &str, range: RangeInclusive<u16>) -> u16 {
    let (start, end) = range.into_inner();
    let count = u128::from(end.saturating_sub(start)) + 1;
    // Below `count`, which is at most 65536 - start: the sum stays a port.
    start + (number(&derive("portal port 1", key, service)) % count) as u16
}

const KEY_LEN: usize = 32;

/// BLAKE2s-256 of a purpose, a key and a text. The key has a fixed length, so no two inputs run into one another as
/// long as no purpose is a prefix of another.
fn derive(purpose: &str, key: &PublicKey, text: &str) -> [u8; 32] {
    Blake2s256::new()
        .chain_update(purpose)
        .chain_update(key.0)
        .chain_update(text)
        .finalize()
        .into()
}

/// The first 16 bytes as a big-endian number: so much larger than what is taken from it that the bias is nothing.
fn number(digest: &[u8; 32]) -> u128 {
    digest[..16]
        .iter()
        .fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// Decodes a key that has `expected` characters; `otherwise` is for what is not of the engine's alphabet.
fn decode(
    engine: &GeneralPurpose,
    text: &str,
    expected: usize,
    otherwise: KeyError,
) -> Result<[u8; KEY_LEN], KeyError> {
    let found = text.chars().count();
    if found != expected {
        return Err(KeyError::Length { expected, found });
    }
    // One byte more than a key: what 44 characters without padding decode to.
    let mut bytes = [0; KEY_LEN + 1];
    match engine.decode_slice(text, &mut bytes) {
        Ok(KEY_LEN) => {
            let mut key = [0; KEY_LEN];
            key.copy_from_slice(&bytes[..KEY_LEN]);
            Ok(key)
        }
        Err(base64::DecodeSliceError::DecodeError(base64::DecodeError::InvalidLastSymbol(..))) => {
            Err(KeyError::NotCanonical)
        }
        Ok(_) | Err(_) => Err(otherwise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // RFC 7748, section 6.1: Alice's and Bob's keys. Alice's secret is not clamped in the RFC's text.
    const ALICE_SECRET: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
        0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
    ];
    const ALICE_PUBLIC: [u8; 32] = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d, 0xbf,
        0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
    ];

    fn alice() -> PublicKey {
        PublicKey::from_bytes(ALICE_PUBLIC)
    }

    #[test]
    fn public_key_of_rfc_7748() {
        let secret = SecretKey::from_bytes(ALICE_SECRET);
        assert_eq!(secret.public_key(), alice());
        assert_eq!(secret.as_bytes()[0], 0x70, "clamped");
        assert_eq!(secret.as_bytes()[31], 0x6a, "clamped");
    }

    /// Made by `wg genkey` and `wg pubkey`.
    #[test]
    fn agrees_with_wg() {
        let secret: SecretKey = "0GzZTJ/xs3oMwzxIn/s/JDcWhHf0/narkoYVXvBJZmQ=\n".parse().unwrap();
        assert_eq!(secret.to_base64(), "0GzZTJ/xs3oMwzxIn/s/JDcWhHf0/narkoYVXvBJZmQ=");
        assert_eq!(
            secret.public_key().to_string(),
            "R1vTdRDx+qYrbMf3ekSvqA3EOOO2Zlyb3kybKp7871M="
        );
    }

    #[test]
    fn text_forms() {
        let key = alice();
        assert_eq!(key.to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(format!("{key:?}"), key.to_string());
        assert_eq!(key.url_safe(), "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo");
        assert_eq!(key.short(), "hSDwCYkw");
        assert_eq!(format!(" {key}\r\n").parse(), Ok(key));
        assert_eq!(PublicKey::from_url_safe(&key.url_safe()), Ok(key));
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{key}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&format!("\"{key}\"")).unwrap(), key);
    }

    #[test]
    fn refuses_other_texts() {
        let parse = |text: &str| text.parse::<PublicKey>().unwrap_err();
        let good = alice().to_string();
        assert_eq!(parse(""), KeyError::Length { expected: 44, found: 0 });
        assert_eq!(
            parse(&good[..43]),
            KeyError::Length {
                expected: 44,
                found: 43
            }
        );
        assert_eq!(parse(&good.replace('/', "_")), KeyError::NotBase64);
        assert_eq!(parse(&good.replace('/', "ä")), KeyError::NotBase64);
        assert_eq!(parse(&good.replace('=', "A")), KeyError::NotBase64);
        assert_eq!(parse(&good.replace("mo=", "g==")), KeyError::NotBase64);
        assert_eq!(parse(&good.replace("mo=", "mp=")), KeyError::NotCanonical);

        let url = |text: &str| PublicKey::from_url_safe(text).unwrap_err();
        assert_eq!(
            url(&good),
            KeyError::Length {
                expected: 43,
                found: 44
            }
        );
        assert_eq!(url(&good[..43]), KeyError::NotBase64Url);
        assert_eq!(
            url(&good[..43]).to_string(),
            "it is not 32 bytes of base64url (A-Z a-z 0-9 - _, no padding)"
        );
        assert_eq!(url(&alice().url_safe().replace("Tmo", "Tmp")), KeyError::NotCanonical);
    }

    #[test]
    fn secret_stays_out_of_logs() {
        let secret = SecretKey::from_bytes(ALICE_SECRET);
        assert_eq!(format!("{secret:?}"), "SecretKey(..)");
    }

    /// Computed with Python's hashlib, so that neither the purpose strings nor the cutting can change unseen: peers
    /// would no longer find each other, and names would move.
    #[test]
    fn derived_values_never_change() {
        assert_eq!(
            alice().overlay_address().to_string(),
            "fdd3:6780:1cf9:23a9:d58d:bac7:6a5c:25b8"
        );
        assert_eq!(derived_name(&alice(), "web"), "kvj8gbkqh8");
        assert_eq!(derived_port(&alice(), "web", 20000..=29999), 28858);
    }

    #[test]
    fn derived_port_of_edge_ranges() {
        assert_eq!(derived_port(&alice(), "", 7..=7), 7);
        #[expect(clippy::reversed_empty_ranges, reason = "configuration may hold one")]
        let empty = 9..=3;
        assert_eq!(derived_port(&alice(), "", empty), 9);
        let _ = derived_port(&alice(), "", 0..=u16::MAX);
        assert_eq!(derived_port(&alice(), "", u16::MAX..=u16::MAX), u16::MAX);
    }

    proptest! {
        #[test]
        fn round_trips(bytes: [u8; 32]) {
            let key = PublicKey::from_bytes(bytes);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            prop_assert_eq!(PublicKey::from_url_safe(&key.url_safe()), Ok(key));
            prop_assert_eq!(key.overlay_address().octets()[0], 0xfd);
            let secret = SecretKey::from_bytes(bytes);
            let again: SecretKey = secret.to_base64().parse().unwrap();
            prop_assert_eq!(again.as_bytes(), secret.as_bytes());
        }

        #[test]
        fn any_text_is_handled(text in ".{0,60}") {
            if let Ok(key) = text.parse::<PublicKey>() {
                prop_assert_eq!(key.to_string(), text.trim());
            }
            let _ = text.parse::<SecretKey>();
            let _ = PublicKey::from_url_safe(&text);
        }

        #[test]
        fn derived_names_are_labels(bytes: [u8; 32], service in ".{0,20}", start: u16, len: u16) {
            let key = PublicKey::from_bytes(bytes);
            let name = derived_name(&key, &service);
            prop_assert_eq!(name.len(), 10);
            prop_assert!(name.starts_with(|c: char| c.is_ascii_lowercase()));
            prop_assert!(crate::names::check_label(&name).is_ok());
            let range = start..=start.saturating_add(len);
            prop_assert!(range.contains(&derived_port(&key, &service, range.clone())));
        }
    }
}
