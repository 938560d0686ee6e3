//! Reading it all once more while the program runs.

use crate::failure::Failure;
use crate::process::Hangups;
use crate::report::Console;

/// Waits for a hangup after which `read` succeeds. Of one after which it fails, a line is said, and all stays as it is.
///
/// It reads on a thread of its own: a file system that hangs must not hold up the thread that moves bytes.
pub(crate) async fn read_at_hangup<T, R>(hangups: &mut Hangups, console: &Console, read: R) -> T
where
    T: Send + 'static,
    R: Fn() -> Result<T, Failure> + Clone + Send + 'static,
{
    loop {
        hangups.recv().await;
        match tokio::task::spawn_blocking(read.clone()).await {
            Ok(Ok(read)) => return read,
            Ok(Err(failure)) => console.problem(format!(
                "what was to be read again cannot be used, so all stays as it is: {}",
                failure.as_problem()
            )),
            // It is never cancelled, and a panic ends the process.
            Err(_) => {}
        }
    }
}
