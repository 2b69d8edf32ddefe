//! Child processes that never outlive this one.
//!
//! Each child leads its own process group, so that stopping it stops its children too, and Ctrl-C in the terminal only
//! reaches this process, which stops the children in order. Invariants:
//! - the [`Keeper`] knows a group from its start until its leader has been waited for;
//! - if this process ends in any way (a panic, a dropped future, SIGKILL), exactly the groups that the keeper knows end.

use crate::error::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::process::{Child, Command};

/// Ends the groups when its input ends, that is when this process has ended in any way. It has to be a process of its own
/// because SIGKILL cannot be handled. (No `--` before a group: the `kill` of dash, Debian's `sh`, does not support it.)
const LAST_WILL: &str = r#"
groups=" "
while read -r verb group; do
  case "$verb" in
    keep) groups="$groups$group " ;;
    forget) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -TERM "-$group" 2>/dev/null; done
[ "$groups" = " " ] || sleep 2
for group in $groups; do kill -KILL "-$group" 2>/dev/null; done
"#;

/// Cargo, in the workspace: the one that runs this process, if any.
pub fn cargo() -> std::process::Command {
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::paths::workspace());
    cargo
}

/// Knows every process group that was started and not yet stopped.
pub struct Keeper {
    state: Mutex<State>,
}

struct State {
    groups: BTreeSet<u32>,
    will: std::process::Child,
}

impl Keeper {
    /// Starts with no groups.
    ///
    /// # Errors
    /// There is no `sh`.
    pub fn start() -> Result<Arc<Self>> {
        use std::os::unix::process::CommandExt as _;
        let will = std::process::Command::new("sh")
            .args(["-c", LAST_WILL])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context(|| "cannot start sh, which ends what was started if this process is killed".into())?;
        Ok(Arc::new(Self { state: Mutex::new(State { groups: BTreeSet::new(), will }) }))
    }

    /// Starts `command` as the leader of a group of its own.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(self: &Arc<Self>, name: &str, command: &mut Command) -> Result<Group> {
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .context(|| format!("cannot start {name} ({})", command.as_std().get_program().display()))?;
        let id = child.id().unwrap_or_default();
        self.lock().tell("keep", id);
        Ok(Group { child, id, name: name.to_owned(), keeper: Arc::clone(self) })
    }

    /// Ends all groups at once. For when there is no time or no runtime left to ask politely.
    pub fn kill_all(&self) {
        for id in self.lock().groups.clone() {
            signal(id, Signal::KILL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill_all();
        let mut state = self.lock();
        // Its input ends here; it has nothing left to end unless a kill above was refused.
        drop(state.will.stdin.take());
        let _ = state.will.wait();
    }
}

impl State {
    fn tell(&mut self, verb: &str, id: u32) {
        let changed = match verb {
            "keep" => self.groups.insert(id),
            _ => self.groups.remove(&id),
        };
        if !changed {
            return;
        }
        if let Some(input) = self.will.stdin.as_mut() {
            // Without its last will the stack still works; only a SIGKILL of this process would leave children.
            let _ = writeln!(input, "{verb} {id}");
        }
    }
}

/// A child and all that it started.
pub struct Group {
    child: Child,
    id: u32,
    name: String,
    keeper: Arc<Keeper>,
}

impl Group {
    /// The leader's process id, which is also the group's.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The leader itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the leader to end by itself. Safe to drop and to call again.
    ///
    /// # Errors
    /// The operating system does not say.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let name = &self.name;
        let status = self.child.wait().await.context(|| format!("cannot wait for {name}"))?;
        self.keeper.lock().tell("forget", self.id);
        Ok(status)
    }

    /// Waits for the leader to end by itself; how it ended, in words. Safe to drop and to call again.
    pub async fn ended(&mut self) -> String {
        self.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        self::signal(self.id, signal);
    }

    /// Ends the group. At once: nothing that the stack starts has anything to save.
    pub async fn kill(mut self) {
        signal(self.id, Signal::KILL);
        let _ = self.wait().await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After the wait, the id may belong to another process.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.id, Signal::KILL);
        }
        self.keeper.lock().tell("forget", self.id);
    }
}

fn signal(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // A group that has just ended by itself is what was wanted.
        let _ = kill_process_group(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    fn alive(id: u32) -> bool {
        kill_process_group(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), Signal::CONT).is_ok()
    }

    /// A zombie keeps its group's id until it is reaped, which may take a moment.
    async fn gone(id: u32) -> bool {
        let mut probe = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..200 {
            probe.tick().await;
            if !alive(id) {
                return true;
            }
        }
        false
    }

    /// A group of two processes that says when it runs.
    async fn two(keeper: &Arc<Keeper>, script: &str) -> Group {
        let mut group = keeper.spawn("two", Command::new("sh").args(["-c", script]).stdout(Stdio::piped())).unwrap();
        let out = group.child().stdout.take().unwrap();
        assert_eq!(BufReader::new(out).lines().next_line().await.unwrap().as_deref(), Some("runs"));
        group
    }

    #[tokio::test]
    async fn the_whole_group_ends_even_one_that_ignores_requests_to() {
        let keeper = Keeper::start().unwrap();
        let group = two(&keeper, "trap '' TERM; echo runs; sleep 60 & wait; sleep 60").await;
        let id = group.id();
        group.kill().await;
        assert!(gone(id).await);
    }

    #[tokio::test]
    async fn dropping_a_group_ends_it() {
        let keeper = Keeper::start().unwrap();
        let group = two(&keeper, "echo runs; sleep 60 & wait").await;
        let id = group.id();
        drop(group);
        assert!(gone(id).await);
    }

    #[tokio::test]
    async fn the_last_will_ends_what_is_kept_and_not_what_is_forgotten() {
        let keeper = Keeper::start().unwrap();
        let mut kept = two(&keeper, "echo runs; exec sleep 60").await;
        let forgotten = two(&keeper, "echo runs; exec sleep 60").await;
        keeper.lock().tell("forget", forgotten.id());
        // As when this process is killed: its end of the pipe closes.
        drop(keeper.lock().will.stdin.take());
        let status = tokio::time::timeout(Duration::from_secs(5), kept.child.wait()).await.unwrap().unwrap();
        assert!(!status.success());
        assert!(alive(forgotten.id()));
    }
}
