//! What every runtime of Portal must do, written once.
//!
//! A runtime shows itself as an [`Adapter`]; [`conformance!`](crate::conformance) turns the cases of [`cases`] into tests for one adapter
//! under the relay and one under the agent. Both run in the test's process, on threads of their own, and meet on
//! loopback, through a [`Cable`](world::Cable) that a case can pull.

pub mod cases;
pub mod world;

use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portal_core::Machine;

/// A runtime under test.
pub trait Adapter: Copy + Send + 'static {
    /// Runs a machine on a thread of its own, with this socket for its tunnel. A shutdown waits no longer than `grace`.
    fn start<M>(self, machine: M, tunnel: UdpSocket, grace: Duration) -> Started<M>
    where
        M: Machine + Send + 'static,
        M::Event: Send + 'static;
}

/// Something to be done with a machine on its own thread.
pub type Call<M> = Box<dyn FnOnce(&mut M, Instant) + Send>;

/// A machine that runs.
pub struct Started<M: Machine> {
    /// Has something done with the machine, and waits until it is.
    pub call: Box<dyn Fn(Call<M>) + Send + Sync>,
    /// What it tells.
    pub events: Receiver<M::Event>,
    /// Asks it to end; asked twice, it ends at once.
    pub shutdown: Box<dyn Fn() + Send + Sync>,
    /// Its end: whether everything was finished.
    pub ended: JoinHandle<bool>,
}

/// What a machine tells, by a function that waits for the next event, on a thread of its own.
pub fn forwarded<E: Send + 'static>(mut next: impl FnMut() -> Option<E> + Send + 'static) -> Receiver<E> {
    let (tell, events) = channel();
    thread::spawn(move || {
        while let Some(event) = next() {
            if tell.send(event).is_err() {
                return;
            }
        }
    });
    events
}

/// Makes a module of tests: each case, or those that are named, with one adapter under the relay and one under the agent.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $relay:expr, $agent:expr) => {
        $crate::conformance!(
            $name,
            $relay,
            $agent,
            bytes_come_back_exactly_both_ways_at_once,
            an_end_of_file_travels_alone,
            a_reset_travels_both_ways,
            a_reader_that_stops_stops_the_writer,
            hundreds_of_connections_live_side_by_side,
            a_unix_socket_is_a_target_like_any,
            a_target_that_refuses_is_said_to_visitors,
            a_name_is_looked_up_while_others_are_served,
            datagrams_find_their_visitor,
            services_change_while_connections_go_on,
            an_agent_that_vanished_comes_back_to_its_lease,
            a_relay_that_was_restarted_is_found_again,
            a_transfer_outlives_a_new_address_and_a_pulled_cable,
            a_shutdown_lets_a_transfer_end_and_nobody_in,
            a_second_shutdown_ends_at_once,
            accepting_goes_on_once_descriptors_are_free,
        );
    };
    ($name:ident, $relay:expr, $agent:expr, $($case:ident),* $(,)?) => {
        mod $name {
            use super::*;

            $(
                #[test]
                fn $case() {
                    let test = concat!(stringify!($name), "::", stringify!($case));
                    $crate::cases::$case($crate::Case { relay: $relay, agent: $agent, test });
                }
            )*
        }
    };
}

/// What a case is run with.
#[derive(Clone, Copy, Debug)]
pub struct Case<R, A> {
    /// Under the relay.
    pub relay: R,
    /// Under the agent.
    pub agent: A,
    /// The full name of the test that it is.
    pub test: &'static str,
}
