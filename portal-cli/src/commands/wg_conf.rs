//! `portal wg-conf`: the wg-quick file of a plain peer, and the table that the relay needs for it.

use std::fmt::Write as _;

use portal_core::Kind;
use portal_core::identity::{PresharedKey, PublicKey, SecretKey};
use portal_core::names::{LabelError, check_label};
use portal_core::uri::RelayUri;
use serde_json::json;

use crate::cli::{LeaseArgs, Output, WgConfArgs};
use crate::failure::{Exit, Explain, Failure};
use crate::{keyfile, report};

/// Keeps a NAT's mapping open, and so the peer within reach.
const KEEPALIVE_S: u16 = 25;

/// Runs the command.
pub(crate) fn run(args: &WgConfArgs, output: Output) -> Result<(), Failure> {
    let secret = args.key.as_deref().map(keyfile::load).transpose()?;
    let key = match (&secret, args.peer) {
        (Some(secret), _) => secret.public_key(),
        (None, Some(key)) => key,
        (None, None) => return Err(WgConfError::NoPeer.into()),
    };
    check(&args.lease, args.relay_side)?;
    let table = table(key, args);
    if args.relay_side {
        report::print_result(output, table.trim_end(), &json!({"peer": key, "relay_table": table}));
        return Ok(());
    }
    let relay = args.relay.as_ref().ok_or(WgConfError::NoRelay)?;
    if relay.key == key {
        return Err(WgConfError::OwnKey(key).into());
    }
    let shared = args.preshared_key.as_deref().map(keyfile::load_shared).transpose()?;
    let file = WgConf {
        key,
        secret: secret.as_ref(),
        shared: shared.as_ref(),
        relay,
        mtu: args.packets.mtu,
        lease: &args.lease,
        table: &table,
    }
    .file();
    let is_secret = secret.is_some() || shared.is_some();
    report::print_result(
        output,
        file.trim_end(),
        &json!({
            "peer": key,
            "overlay": key.overlay_address(),
            "relay": relay.key,
            "relay_overlay": relay.key.overlay_address(),
            "endpoint": endpoint(relay),
            "mtu": args.packets.mtu,
            "target_port": args.lease.target_port(),
            "secret": is_secret,
            "config": file,
            "relay_table": table,
        }),
    );
    if is_secret {
        report::print_note(
            output,
            "what was printed holds a secret: keep it in a file that only its owner can read (chmod 600)",
        );
    } else {
        report::print_note(
            output,
            "the private key is to be filled in on the peer's machine, where the file says PrivateKey",
        );
    }
    Ok(())
}

/// What goes into a file.
struct WgConf<'a> {
    key: PublicKey,
    secret: Option<&'a SecretKey>,
    shared: Option<&'a PresharedKey>,
    relay: &'a RelayUri,
    mtu: u16,
    lease: &'a LeaseArgs,
    table: &'a str,
}

impl WgConf<'_> {
    /// The file, as `wg-quick` reads it.
    fn file(&self) -> String {
        let mut file = String::new();
        let overlay = self.key.overlay_address();
        let (port, transport) = match self.lease.kind {
            Kind::Udp => (self.lease.target_port(), "UDP"),
            _ => (self.lease.target_port(), "TCP"),
        };
        let mut line = |text: &str| {
            file.push_str(text);
            file.push('\n');
        };
        line(&format!("# A plain WireGuard peer of a portal relay: {}", self.key));
        line("# Save it as /etc/wireguard/portal.conf with mode 600, then: wg-quick up portal");
        line("#");
        line("# Let the service listen here, or on every address:");
        line(&format!("#   [{overlay}]:{port} ({transport})"));
        if self.lease.proxy_header {
            line("# It must read a PROXY protocol v2 header at the start of each connection.");
        }
        line("#");
        line("# What the relay's file (portal relay --config) needs:");
        for text in self.table.lines() {
            line(format!("#   {text}").trim_end());
        }
        line("");
        line("[Interface]");
        match self.secret {
            Some(secret) => line(&format!("PrivateKey = {}", secret.to_base64())),
            None => {
                line(
                    "# Fill in what `wg genkey` made when it made this peer's key; wg-quick refuses the file until then.",
                );
                line("PrivateKey = fill-in-the-private-key");
            }
        }
        line(&format!("Address = {overlay}/128"));
        line(&format!("MTU = {}", self.mtu));
        line("");
        line("[Peer]");
        line(&format!("PublicKey = {}", self.relay.key));
        if let Some(shared) = self.shared {
            line(&format!("PresharedKey = {}", shared.to_base64()));
        }
        line(&format!("Endpoint = {}", endpoint(self.relay)));
        line(&format!("AllowedIPs = {}/128", self.relay.key.overlay_address()));
        line(&format!("PersistentKeepalive = {KEEPALIVE_S}"));
        file
    }
}

fn endpoint(RelayUri { host, port, .. }: &RelayUri) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The relay's half. A name or port that was not given is left to be filled in.
fn table(key: PublicKey, args: &WgConfArgs) -> String {
    let lease = &args.lease;
    let mut table = format!("[[peer]]\nkey = \"{key}\"\n");
    let mut line = |name: &str, value: toml::Value| {
        let _ = writeln!(table, "{name} = {value}");
    };
    if let Some(path) = &args.preshared_key {
        line("preshared-key", path.to_string_lossy().into_owned().into());
    }
    line("kind", lease.kind.to_string().into());
    if has_name(lease.kind) {
        line("name", lease.name.as_deref().unwrap_or("fill-in-a-name").into());
    } else {
        line("port", i64::from(lease.port.unwrap_or_default()).into());
    }
    line("target-port", i64::from(lease.target_port()).into());
    if lease.proxy_header {
        line("proxy-header", true.into());
    }
    table
}

/// Whether the flags of the lease go together. `whole` asks for all there is to say of it.
fn check(lease: &LeaseArgs, whole: bool) -> Result<(), WgConfError> {
    let kind = lease.kind;
    match kind {
        Kind::Https => return Err(WgConfError::NoTls),
        Kind::Udp if lease.proxy_header => return Err(WgConfError::HeaderOverUdp),
        _ => {}
    }
    if let Some(name) = &lease.name {
        check_label(name).map_err(|error| WgConfError::BadName {
            name: name.clone(),
            error,
        })?;
    }
    let ((wanted, given), (other, too_much)) = if has_name(kind) {
        (("--name", lease.name.is_some()), ("--port", lease.port.is_some()))
    } else {
        (("--port", lease.port.is_some()), ("--name", lease.name.is_some()))
    };
    if too_much {
        return Err(WgConfError::WrongPlace { kind, wanted, other });
    }
    // A name can be chosen later; a port is also where the service listens.
    if !given && (whole || !has_name(kind)) {
        return Err(WgConfError::NoPlace { kind, wanted });
    }
    Ok(())
}

fn has_name(kind: Kind) -> bool {
    matches!(kind, Kind::Http | Kind::Https | Kind::Tls)
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
enum WgConfError {
    #[error("whose configuration this is to be is missing")]
    NoPeer,
    #[error("the relay is missing")]
    NoRelay,
    #[error("the key {0} is the relay's own, so it cannot be its peer's")]
    OwnKey(PublicKey),
    #[error("a plain peer has no {} service: only an agent can end TLS", Kind::Https)]
    NoTls,
    #[error("--proxy-header cannot be with the kind udp: only TCP connections begin with a PROXY header")]
    HeaderOverUdp,
    #[error("the name \"{name}\" cannot be used: {error}")]
    BadName { name: String, error: LabelError },
    #[error("{other} cannot be with the kind {kind}: its visitors come by {wanted}")]
    WrongPlace {
        kind: Kind,
        wanted: &'static str,
        other: &'static str,
    },
    #[error("{wanted} is missing: it is how visitors of the kind {kind} come")]
    NoPlace { kind: Kind, wanted: &'static str },
}

impl Explain for WgConfError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoPeer => "give the peer's public key, as `wg pubkey` prints it, or its key file with --key".into(),
            Self::NoRelay => {
                "give the URI that `portal relay` prints: --relay portal://KEY@HOST:PORT, or PORTAL_RELAY".into()
            }
            Self::OwnKey(_) => "make a key for the peer with: portal key new wg.key".into(),
            Self::NoTls => "let the service end TLS itself and use --kind tls, or use --kind http".into(),
            Self::HeaderOverUdp => "leave --proxy-header away".into(),
            Self::BadName { .. } => "choose another --name".into(),
            Self::WrongPlace { wanted, other, .. } => format!("use {wanted} in place of {other}"),
            Self::NoPlace { wanted, .. } => format!("add {wanted}"),
        })
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    const RELAY: &str = "portal://GkqI-x8Oxj0XfNOp9Bdn9uCZxqpYoPT7-Su8tqGd1iE@relay.example.com:51820";

    fn args(rest: &[&str]) -> WgConfArgs {
        let all = [&["portal", "wg-conf"], rest].concat();
        let Command::WgConf(args) = Cli::try_parse_from(all).unwrap().command else {
            panic!()
        };
        args
    }

    #[test]
    fn a_table_says_what_was_given_and_what_is_to_be_filled_in() {
        let key = PublicKey::from_bytes([1; 32]);
        let text = key.to_string();
        let said = |rest: &[&str]| table(key, &args(&[&[text.as_str()], rest].concat()));
        assert_eq!(
            said(&[]),
            format!("[[peer]]\nkey = \"{key}\"\nkind = \"http\"\nname = \"fill-in-a-name\"\ntarget-port = 80\n")
        );
        assert_eq!(
            said(&[
                "--kind",
                "tcp",
                "--port",
                "20022",
                "--target-port",
                "22",
                "--proxy-header",
                "--preshared-key",
                "a\"b"
            ]),
            format!(
                "[[peer]]\nkey = \"{key}\"\npreshared-key = 'a\"b'\nkind = \"tcp\"\nport = 20022\ntarget-port = 22\n\
                 proxy-header = true\n"
            )
        );
        assert!(said(&["--kind", "udp", "--port", "53"]).contains("target-port = 53\n"));
        assert!(said(&["--kind", "tls"]).contains("target-port = 443\n"));
    }

    #[test]
    fn the_relays_address_is_written_as_wg_reads_it() {
        let uri: RelayUri = RELAY.parse().unwrap();
        assert_eq!(endpoint(&uri), "relay.example.com:51820");
        let uri: RelayUri = RELAY.replace("relay.example.com", "[2001:db8::1]").parse().unwrap();
        assert_eq!(endpoint(&uri), "[2001:db8::1]:51820");
    }
}
