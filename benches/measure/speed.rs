//! Builds side by side: bulk, new connections, small requests, processor time. One after the other, several times over,
//! so that a busy moment of the machine does not fall on one alone.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::portal::{Build, Pair};
use crate::target::{bulk, echo, request, visit};

const RUNS: usize = 5;
/// Bytes of one transfer.
const BULK: i64 = 512 << 20;
const CONNECTIONS: usize = 1_000;
const REQUESTS: usize = 5_000;

/// One build's figures of one run.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    down: f64,
    up: f64,
    cpu: f64,
    connections: f64,
    request: f64,
}

/// Prints medians, and their ratio to the first build's.
pub(crate) async fn compare(builds: &[Build]) -> io::Result<()> {
    let (echo, bulk) = (echo().await?, bulk().await?);
    let mut runs = vec![Vec::new(); builds.len()];
    for _ in 0..RUNS {
        for (build, runs) in builds.iter().zip(&mut runs) {
            runs.push(once(build, echo, bulk).await?);
        }
    }
    println!(
        "| build | down Mbit/s | up Mbit/s | CPU s a GB, both ends | connections a second | small request µs (medians of \
         {RUNS}; × the first) |"
    );
    println!("|---|---|---|---|---|---|");
    type Figure = fn(&Figures) -> f64;
    let figures: [(Figure, usize); 5] = [
        (|run| run.down, 0),
        (|run| run.up, 0),
        (|run| run.cpu, 2),
        (|run| run.connections, 0),
        (|run| run.request, 0),
    ];
    for (build, mine) in builds.iter().zip(&runs) {
        let cells: Vec<String> = figures
            .iter()
            .map(|(figure, digits)| {
                let (value, first) = (median(mine, figure), median(&runs[0], figure));
                format!("{value:.digits$} (× {:.2})", value / first)
            })
            .collect();
        println!("| {} | {} |", build.name, cells.join(" | "));
    }
    println!();
    Ok(())
}

async fn once(build: &Build, echo: u16, bulk: u16) -> io::Result<Figures> {
    let mut figures = Figures::default();
    let pair = Pair::start(build, bulk, &[], None)?;
    // The first one opens buffers and windows.
    transfer(pair.port, BULK / 8).await?;
    let cpu = |pair: &Pair| io::Result::Ok(pair.relay.usage()?.cpu + pair.agent.usage()?.cpu);
    let before = cpu(&pair)?;
    figures.down = transfer(pair.port, BULK).await?;
    figures.up = transfer(pair.port, -BULK).await?;
    figures.cpu = (cpu(&pair)? - before) / (2 * BULK) as f64 * 1e9;
    drop(pair);

    let pair = Pair::start(build, echo, &[], None)?;
    let start = Instant::now();
    for number in 0..CONNECTIONS {
        request(&mut visit(pair.port, number).await?).await?;
    }
    figures.connections = CONNECTIONS as f64 / start.elapsed().as_secs_f64();
    let mut visitor = visit(pair.port, 0).await?;
    let start = Instant::now();
    for _ in 0..REQUESTS {
        request(&mut visitor).await?;
    }
    figures.request = start.elapsed().as_secs_f64() / REQUESTS as f64 * 1e6;
    Ok(figures)
}

/// Moves bytes to (positive) or from the visitor; Mbit/s.
async fn transfer(port: u16, bytes: i64) -> io::Result<f64> {
    let mut stream = visit(port, 0).await?;
    let mut buffer = vec![0x5a; 256 * 1024];
    let start = Instant::now();
    stream.write_i64(bytes).await?;
    let mut left = bytes.unsigned_abs() as usize;
    while left > 0 {
        let piece = left.min(buffer.len());
        if bytes > 0 {
            left -= match stream.read(&mut buffer[..piece]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => count,
            };
        } else {
            stream.write_all(&buffer[..piece]).await?;
            left -= piece;
        }
    }
    stream.read_u8().await?;
    Ok(bytes.unsigned_abs() as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6)
}

fn median(runs: &[Figures], figure: &fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
