//! A log subscriber for which an error is a failure.

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Panics at any ERROR event of Portal's own crates: the core has none for what the network can do to it.
///
/// Use it by `tracing::subscriber::with_default`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorsPanic;

/// Collects an event's fields as text.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

impl Subscriber for ErrorsPanic {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.target().starts_with("portal")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        panic!("an error was logged by {}:{}", event.metadata().target(), text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "an error was logged by portal_sim")]
    fn an_error_of_ours_panics() {
        tracing::subscriber::with_default(ErrorsPanic, || {
            tracing::warn!("nothing");
            tracing::error!(target: "elsewhere", "nothing");
            tracing::error!("boom");
        });
    }
}
