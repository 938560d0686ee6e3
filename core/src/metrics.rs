//! Counters and gauges as OpenMetrics text, which Prometheus reads.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::counters::Counters;

/// A number of now: name, help text, value.
pub(crate) type Gauge = (&'static str, &'static str, u64);

/// Renders every counter and the gauges, each name with `prefix` and an underscore in front.
pub(crate) fn render(prefix: &str, counters: &Counters, gauges: &[Gauge]) -> String {
    let mut registry = Registry::with_prefix(prefix);
    registry.register_collector(Box::new(Snapshot {
        counters: counters.clone(),
        gauges: gauges.to_vec(),
    }));
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Snapshot {
    counters: Counters,
    gauges: Vec<Gauge>,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, text, value) in self.counters.iter() {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, text.trim(), None, counter.metric_type())?)?;
        }
        for &(name, text, value) in &self.gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, text.trim(), None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_come_with_help_and_type() {
        let counters = Counters {
            drop_mac1: 7,
            ..Counters::default()
        };
        let text = render("portal", &counters, &[("flows", "Flows in the tunnels.", 3)]);
        assert!(text.contains("portal_drop_mac1_total 7\n"), "{text}");
        assert!(text.contains("# TYPE portal_drop_mac1 counter\n"), "{text}");
        assert!(text.contains("# HELP portal_flows Flows in the tunnels.\n"), "{text}");
        assert!(text.contains("portal_flows 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
