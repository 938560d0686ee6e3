//! What the layer above does with a flow: looks at it, and moves its bytes.

use smoltcp::socket::tcp::State;

use super::{FlowId, FlowView, Stack};

impl Stack {
    /// What a flow looks like now.
    pub(crate) fn view(&self, id: FlowId) -> Option<FlowView> {
        let flow = self.flows.get(id.0)?;
        let closed = flow.state() == State::Closed;
        Some(FlowView {
            peer: flow.peer,
            owner: flow.owner,
            local_port: flow.key.local_port,
            inbound: flow.inbound,
            established: flow.seen.established,
            can_send: flow.can_send(),
            can_receive: flow.can_receive(),
            remote_fin: flow.seen.remote_fin,
            broken: flow.seen.aborted || closed && !(flow.seen.remote_fin && flow.seen.local_fin),
            heard: flow.heard,
        })
    }

    /// Lets `read` write into the flow's send buffer; returns how much it wrote, `None` if there is no room.
    pub(crate) fn fill(&mut self, id: FlowId, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let flow = self.flows.get_mut(id.0)?;
        if !flow.can_send() {
            return None;
        }
        let Some(house) = &mut flow.house else {
            self.rouse(id);
            return None;
        };
        let written = house
            .socket_mut()
            .send(|room| {
                let written = read(room).min(room.len());
                (written, written)
            })
            .ok()?;
        if written > 0 {
            flow.wire.put(written);
            flow.moved_bytes = true;
            self.enqueue(id);
        }
        Some(written)
    }

    /// Queues as much of `bytes` as fits. [`Stack::pop_touched`] names the flow when there may be room for the rest.
    pub(crate) fn send(&mut self, id: FlowId, bytes: &[u8]) -> usize {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return 0;
        };
        if !flow.can_send() {
            return 0;
        }
        let Some(house) = &mut flow.house else {
            self.rouse(id);
            return 0;
        };
        let arrived = flow.early.take_arrived();
        let sent = house.socket_mut().send_slice(&bytes[arrived..]).unwrap_or(0);
        if sent > 0 {
            flow.wire.put(sent);
            flow.moved_bytes = true;
            self.enqueue(id);
        }
        arrived + sent
    }

    /// Lets `write` look at received bytes and say how many it used up; returns that, `None` if there are none.
    pub(crate) fn drain(&mut self, id: FlowId, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize> {
        let flow = self.flows.get_mut(id.0)?;
        let socket = flow.house.as_mut()?.socket_mut();
        if !socket.can_recv() {
            return None;
        }
        let used = socket
            .recv(|bytes| {
                let used = write(bytes).min(bytes.len());
                (used, used)
            })
            .ok()?;
        if used > 0 {
            flow.wire.took(used);
            flow.moved_bytes = true;
            // The window may have opened. Where an acknowledgement waits it has hardly closed.
            if !flow.delay.waits() {
                self.enqueue(id);
            }
        }
        Some(used)
    }

    /// Sends a FIN behind what was queued; receiving goes on.
    pub(crate) fn close(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id.0) {
            flow.close();
            self.enqueue(id);
        }
    }

    /// A sleeping flow has something to send.
    fn rouse(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id.0) {
            flow.wakes = true;
            self.enqueue(id);
        }
    }
}
