//! The child processes of a run, and the processor time of any process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::TcpListener;

use crate::Result;

/// This program in another role. It ends when it is dropped, and also if this process ends in any other way: its standard
/// input closes then.
pub(crate) struct Child {
    process: std::process::Child,
    /// Where it listens, such as `http://127.0.0.1:40001`.
    pub(crate) url: String,
    /// The same over TLS, if it was asked for a certificate.
    pub(crate) tls_url: Option<String>,
}

impl Child {
    /// Starts it with these arguments and variables, and waits until it listens.
    ///
    /// # Errors
    /// It does not start, or says no address.
    pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            // The log and the metrics. In Lambda it is a pipe to the platform; here each line is the same call of the
            // operating system, without the copy. It is not a terminal, so both are written as in production.
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = process.stderr.take().ok_or("a child without standard error")?;
        let mut child = Self { process, url: String::new(), tls_url: None };
        let mut lines = BufReader::new(stderr).lines();
        let role = arguments.first().copied().unwrap_or_default();
        child.url = lines.next().ok_or_else(|| format!("the process `{role}` did not start"))??;
        if !child.url.starts_with("http://") {
            return Err(format!("the process `{role}` did not start: {}", child.url).into());
        }
        if arguments.contains(&"--certificate") {
            child.tls_url = lines.next().transpose()?;
        }
        let role = role.to_owned();
        std::thread::spawn(move || lines.map_while(std::io::Result::ok).for_each(|line| eprintln!("{role}: {line}")));
        Ok(child)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// In a child: listens on a free port, says where, and ends this process as soon as the parent is gone.
///
/// # Errors
/// There is no port.
pub(crate) async fn announce() -> Result<impl axum::serve::Listener<Addr = std::net::SocketAddr>> {
    use axum::serve::ListenerExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("http://{}", listener.local_addr()?);
    std::thread::spawn(|| {
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    // Without it, the second of two small packets waits for the first one's acknowledgement.
    Ok(listener.tap_io(|stream| _ = stream.set_nodelay(true)))
}

/// The processor time that these processes have used, all threads, in user mode and in the kernel. By ticks of 10 ms.
///
/// # Errors
/// One of them does not run, or this is not Linux.
pub(crate) fn cpu(processes: &[u32]) -> Result<Duration> {
    let mut ticks = 0;
    for process in processes {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))
            .map_err(|error| format!("cannot read the processor time of process {process}: {error}"))?;
        ticks += ticks_of(&stat).ok_or("/proc has no processor time")?;
    }
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks * 1_000 / per_second.max(1)))
}

/// The processor time that a process has used, all threads, to the nanosecond; of threads that have ended, none.
///
/// # Errors
/// It does not run, or this is not Linux.
pub(crate) fn cpu_time_of(process: u32) -> std::io::Result<Duration> {
    let mut time = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let of_thread = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = of_thread.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
        time += Duration::from_nanos(nanoseconds.ok_or_else(|| std::io::Error::other("no time in schedstat"))?);
    }
    Ok(time)
}

/// `utime` and `stime`, the 14th and 15th field. The 2nd, the program's name, may contain blanks and parentheses.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The load averages of this machine, over 1, 5 and 15 minutes.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticks_are_found_after_any_name() {
        let stat = "17 (a ) b (c)) S 1 17 17 0 -1 4194560 500 0 0 0 120 30 7 8 20 0 4 0 900 1000 200";
        assert_eq!(ticks_of(stat), Some(150));
        assert_eq!(ticks_of("17 (a"), None);
    }

    #[test]
    fn this_process_has_used_some_time() {
        let before = cpu(&[std::process::id()]).unwrap();
        let mut sum = 0_u64;
        while cpu(&[std::process::id()]).unwrap() < before + Duration::from_millis(30) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time_of(std::process::id()).unwrap() >= Duration::from_millis(20));
        assert!(cpu(&[0]).is_err() && cpu_time_of(0).is_err());
    }
}
