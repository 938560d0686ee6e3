//! Counts of what happened: one struct, whole numbers that only grow.

/// Declares the counters once: fields, docs, and the list of names and values.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a machine counts. Every refusal and every drop has a field of its own.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Every counter's name, help text and value, in the order of declaration.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Datagrams received from the tunnel's socket.
    datagrams_received,
    /// Datagrams handed out for the tunnel's socket.
    datagrams_sent,
    /// Inner packets opened and accepted.
    packets_opened,
    /// Of those, the ones that carried on the one before them, and were dealt with together with it.
    packets_coalesced,
    /// Inner packets sealed.
    packets_sealed,
    /// Datagrams that are no WireGuard message.
    drop_not_wireguard,
    /// Handshake messages whose MAC1 is wrong.
    drop_mac1,
    /// Handshake initiations beyond what their source may send.
    drop_source_limit,
    /// Handshake messages answered with a cookie instead, under load.
    cookies_sent,
    /// Messages for a session we do not have.
    drop_unknown_index,
    /// Messages that do not authenticate, or were replayed.
    drop_unauthentic,
    /// Initiations of keys that found no room in the table of peers.
    drop_peers_full,
    /// Initiations of keys that we do not talk to.
    drop_unknown_key,
    /// Inner packets whose source is not the peer's overlay address.
    drop_inner_source,
    /// Inner packets not for us, of no known protocol or malformed.
    drop_inner_packet,
    /// Handshakes completed.
    handshakes,
    /// Flows opened, by us or by the peer.
    flows_opened,
    /// Flows ended.
    flows_closed,
    /// Times that a flow got buffers of another size, as its need or the memory had changed.
    buffers_changed,
    /// Times that a silent flow gave its buffers back.
    flows_slept,
    /// Flows refused because the table of flows is full.
    refused_flows_full,
    /// Flows, connections, peers and the like refused because the memory budget is used up.
    refused_memory,
    /// Times that a silent flow could not have its buffers back at once because the memory budget is used up.
    wakes_delayed,
    /// Acknowledgements heard in packets that had nothing else: both ends sent again at the same time.
    late_acknowledgements,
    /// Times that the end of what a flow had to say was asked after, because nobody answered within two round trips.
    tail_probes,
    /// Times that a transfer was given less to have on its way, as it stood in a queue that it, or others, waited behind.
    queues_shortened,
    /// SYNs that were sent once more, as nobody had answered the first one within two round trips.
    syn_probes,
    /// Flows whose first bytes were there with their SYN, sent or received.
    flows_early,
    /// SYNs refused because what they had opened before was lost: its bytes must not arrive twice.
    refused_lost_flow,
    /// Flows refused because too many are half open.
    refused_half_open,
    /// Connections inside the tunnel refused with a RST because nothing listens on their port.
    refused_closed_port,
    /// Control channels refused because the peer has as many as it may.
    refused_channels,
    /// Control channels refused because their key is a plain peer's.
    refused_plain_key,
    /// Visitor connections accepted.
    visitors_accepted,
    /// Visitor connections refused because one source has as many as it may.
    refused_visitor_source,
    /// Visitor connections refused because their lease has as many as it may.
    refused_visitor_lease,
    /// Visitor connections refused because their agent's key has as many as its grant allows.
    refused_visitor_key,
    /// Connections refused because there are too many in all.
    refused_streams_full,
    /// Visitor connections ended because they did not say in time what they want.
    drop_head_timeout,
    /// Visitor connections whose TLS ClientHello or HTTP head is malformed or too long.
    drop_head_malformed,
    /// Visitors who asked for a name that nobody has leased.
    drop_unknown_name,
    /// Connections of operators refused because there are as many as there may be.
    refused_operators,
    /// Operators' requests that are malformed, or did not come in time.
    drop_operator_request,
    /// PROXY headers that are malformed, or did not come in time.
    drop_proxy_header,
    /// Visitors whose TLS failed at the agent.
    drop_tls_visitor,
    /// Connections to targets whose TLS failed, or whose certificate is not trusted.
    drop_tls_target,
    /// Connections whose TLS handshakes took too long.
    drop_tls_timeout,
    /// Dials to local targets that failed.
    dials_failed,
    /// UDP datagrams from visitors or local targets, carried into the tunnel.
    udp_to_tunnel,
    /// UDP datagrams from the tunnel, carried to visitors or local targets.
    udp_from_tunnel,
    /// UDP datagrams too large for the tunnel's MTU.
    drop_udp_oversize,
    /// UDP datagrams dropped because a queue was full or no session was up.
    drop_udp_queue,
    /// UDP datagrams dropped because their agent's key has used up the rate of its grant.
    drop_udp_rate,
    /// UDP associations opened.
    associations_opened,
    /// UDP associations that made room for newer ones.
    associations_evicted,
    /// Leases granted.
    leases_granted,
    /// Registrations refused.
    leases_refused,
    /// Control frames that are malformed or too long.
    drop_control_frame,
    /// Deadlines that came back unmoved after they were honoured, and were pushed by a second.
    stuck_deadlines,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_every_field_once() {
        let counters = Counters {
            stuck_deadlines: 3,
            ..Counters::default()
        };
        let names: Vec<_> = counters.iter().map(|(name, ..)| name).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), unique.len());
        assert_eq!(counters.iter().map(|(.., value)| value).sum::<u64>(), 3);
        assert!(counters.iter().all(|(_, help, _)| help.ends_with('.')));
    }
}
