//! Checks the template's rules, then builds and deploys it unchanged to an emulator, whose triggers call the functions and
//! whose IAM enforces their roles. What was built must be within its budgets of instructions and bytes.
//!
//! Takes minutes, since every function is built as a release, and one for the other processor too:
//! `cargo test --workspace --test deploy`. A filter takes only what it names: `... --test deploy rules`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod cloud;
mod counts;
mod rules;
mod triggers;
mod users;
mod variables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cloud::{Architecture, Cloud, Sam};
use counts::Counter;
use holdfast_local::process::Keeper;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rules::Expanded;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// Most of what is deployed waits for the emulator's clock.
const TESTS_AT_ONCE: usize = 6;

/// The function that is built for the other processor too.
const ONE: &str = "ReserveFunction";

/// What the tests share, each part made when the first test needs it.
struct Shared {
    runtime: Runtime,
    keeper: Arc<Keeper>,
    sam: OnceCell<Sam>,
    template: OnceCell<Expanded>,
    canary: OnceCell<Expanded>,
    built: Minutes<PathBuf>,
    cloud: Minutes<Cloud>,
}

/// What takes minutes to make: once is enough to fail.
struct Minutes<T> {
    made: OnceCell<T>,
    tried: AtomicBool,
}

impl<T> Minutes<T> {
    fn new() -> Self {
        Self { made: OnceCell::new(), tried: AtomicBool::new(false) }
    }

    async fn get(&self, make: impl AsyncFnOnce() -> T) -> &T {
        let make = async || {
            let tried = self.tried.swap(true, Ordering::SeqCst);
            assert!(!tried, "not made; the first test that needed it says why");
            make().await
        };
        self.made.get_or_init(make).await
    }
}

impl Shared {
    async fn sam(&self) -> &Sam {
        self.sam.get_or_init(|| Sam::ready(&self.keeper)).await
    }

    async fn template(&self) -> &Expanded {
        self.template.get_or_init(|| async { self.sam().await.expand(&[]).await }).await
    }

    /// With canary deployments.
    async fn canary(&self) -> &Expanded {
        self.canary.get_or_init(|| async { self.sam().await.expand(&["CanaryDeployments=true"]).await }).await
    }

    /// The build for this machine's processor: all functions.
    async fn built(&self) -> &Path {
        self.built.get(async || self.sam().await.build(Architecture::here(), None).await).await
    }

    async fn cloud(&self) -> &Cloud {
        let deploy = async || {
            let built = self.built().await;
            Cloud::deploy(self.sam().await, built, Architecture::here(), &self.keeper).await
        };
        self.cloud.get(deploy).await
    }

    /// Counts the instructions of requests, if there is what counts them.
    async fn count(&self) -> Result<Completion, Failed> {
        if Architecture::here() != Architecture::X86 {
            return Ok(Completion::ignored_with("left out, since the budgets are those of x86_64"));
        }
        let Some(valgrind) = counts::valgrind()? else {
            return Ok(Completion::ignored_with("left out, since there is no valgrind on the PATH"));
        };
        let counter = Counter { valgrind: &valgrind, built: self.built().await, keeper: &self.keeper };
        none(&counter.over_budget().await).map(|()| Completion::Completed)
    }

    /// Builds a function for the other processor. The result cannot run here, so the test checks its architecture. One of
    /// them: what can fail is the compilation of C code and the linking, and they all have the same.
    async fn other_architecture(&self) {
        let other = if Architecture::here() == Architecture::X86 { Architecture::Arm } else { Architecture::X86 };
        let built = self.sam().await.build(other, Some(ONE)).await;
        let program = built.join(ONE).join("bootstrap");
        assert_eq!(elf_machine(&program), other.elf_machine());
        assert!(!contains(&program, b"HOLDFAST_LOCAL_KEY_SET"), "it would verify tokens itself");
    }
}

fn elf_machine(program: &Path) -> u16 {
    let bytes = std::fs::read(program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert_eq!(bytes.get(..4), Some(b"\x7fELF".as_slice()), "{} is no program", program.display());
    u16::from_le_bytes([bytes[18], bytes[19]])
}

fn contains(program: &Path, text: &[u8]) -> bool {
    let bytes = std::fs::read(program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    bytes.windows(text.len()).any(|window| window == text)
}

fn none(findings: &[String]) -> Result<(), Failed> {
    if findings.is_empty() { Ok(()) } else { Err(findings.join("\n").into()) }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(TESTS_AT_ONCE));
    let shared = Arc::new(Shared {
        runtime: Runtime::new().expect("a runtime"),
        keeper: Keeper::start().expect("a keeper"),
        sam: OnceCell::new(),
        template: OnceCell::new(),
        canary: OnceCell::new(),
        built: Minutes::new(),
        cloud: Minutes::new(),
    });

    let mut trials = Vec::new();
    for (name, rule) in rules::RULES {
        let shared = Arc::clone(&shared);
        trials.push(Trial::test(format!("rules::{name}"), move || {
            shared.runtime.block_on(async {
                none(&rule(shared.template().await))?;
                none(&rule(shared.canary().await))
            })
        }));
    }
    for (rule, breach, broken) in rules::breaches() {
        let shared = Arc::clone(&shared);
        trials.push(Trial::test(format!("rules::{rule}::sees_{}", breach.replace(' ', "_")), move || {
            let mut template = shared.runtime.block_on(shared.template()).clone();
            broken(&mut template.root);
            let check = rules::RULES.iter().find(|(name, _)| *name == rule).expect("a rule").1;
            if check(&template).is_empty() { Err(format!("{rule} does not see it").into()) } else { Ok(()) }
        }));
    }
    let own = Arc::clone(&shared);
    trials.push(Trial::test("rules::each_function_has_exactly_the_variables_that_it_reads", move || {
        own.runtime.block_on(async { none(&variables::differences(own.template().await, &own.keeper).await) })
    }));
    let own = Arc::clone(&shared);
    trials.push(Trial::test("build::the_other_architecture_too", move || {
        own.runtime.block_on(own.other_architecture());
        Ok(())
    }));
    let own = Arc::clone(&shared);
    trials.push(Trial::ignorable_test("build::each_request_is_within_its_budget_of_instructions", move || {
        own.runtime.block_on(own.count())
    }));
    macro_rules! deployed {
        ($($module:ident::$test:ident),* $(,)?) => {$({
            let shared = Arc::clone(&shared);
            trials.push(Trial::test(concat!("deployed::", stringify!($module), "::", stringify!($test)), move || {
                shared.runtime.block_on(async { $module::$test(shared.cloud().await).await });
                Ok(())
            }));
        })*};
    }
    deployed![
        counts::each_zip_is_within_its_budget,
        triggers::every_event_is_answered,
        triggers::a_deployed_schedule_releases_a_hold,
        triggers::the_deployed_sweep_makes_up_for_a_lost_schedule,
        triggers::the_event_source_confirms_what_is_in_the_queue,
        triggers::a_poison_message_is_a_failed_confirmation_at_once,
        triggers::the_deployed_sweep_ingests_failed_confirmations,
        users::only_the_account_makes_an_admin,
        users::a_sign_up_brings_no_groups,
        users::a_sign_up_does_not_tell_who_has_an_account,
        users::an_id_token_is_refused,
        users::a_back_end_signs_in_by_client_credentials,
    ];

    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(shared) = Arc::into_inner(shared) {
        let Shared { runtime, cloud, .. } = shared;
        if let Some(cloud) = cloud.made.into_inner() {
            runtime.block_on(cloud.stop());
        }
    }
    conclusion.exit_code()
}
