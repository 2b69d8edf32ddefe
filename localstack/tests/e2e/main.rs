//! End to end: the compiled functions behind `cargo lambda watch`, and an emulator.
//!
//! One stack serves all tests, each with its own products; tests that kill functions or play on their own start another
//! one, and those that break everything (see `chaos`) run last. The emulator is ministack, or the one at `HOLDFAST_ENDPOINT`: `HOLDFAST_ENDPOINT=http://127.0.0.1:4566 cargo test --test e2e`.
//!
//! Finally the functions' AWS calls are compared with their roles: see `permissions`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod admin;
mod api;
mod audit;
mod bad_input;
mod bare_watch;
mod chaos;
mod client;
mod console;
mod crash;
mod demo;
mod described;
mod docs;
mod holds;
mod integrators;
mod life;
mod money;
mod outages;
mod peers;
mod permissions;
mod queues;
mod races;
mod readme;
mod schemathesis;
mod up;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use holdfast_local::emulator::Choice;
use holdfast_local::runner;
use holdfast_local::stack::{Options, Stack};
use holdfast_wiretap::Wiretap;
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

/// Most tests mainly wait for holds to end.
const TESTS_AT_ONCE: usize = 6;

/// Chaos tests have their own stacks, and run after the others, which depend on time.
const CHAOS_AT_ONCE: usize = 3;

/// The options of the tests' stacks: a failed message comes back after a second, not after a minute.
fn options() -> Options {
    #[expect(clippy::disallowed_methods, reason = "a test binary has no other way to be told")]
    let endpoint = std::env::var("HOLDFAST_ENDPOINT").ok();
    Options {
        emulator: endpoint.map_or(Choice::Ministack, Choice::Endpoint),
        runner: runner::Options { visibility_timeout: Some(Duration::from_secs(1)), ..runner::Options::default() },
        // With a test target Cargo uses the features of `cargo test`, so nothing is compiled twice.
        build_arguments: vec!["--test".to_owned(), "e2e".to_owned()],
        proxy: Some(Arc::new(Wiretap::default())),
        ..Options::default()
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(TESTS_AT_ONCE));
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let wanted = !arguments.list && !arguments.ignored;
    let stack =
        wanted.then(|| Arc::new(runtime.block_on(Stack::start(options())).unwrap_or_else(|error| panic!("{error}"))));

    macro_rules! trials {
        ($($module:ident::{$($test:ident),* $(,)?}),* $(,)?) => {
            vec![$($({
                let (runtime, stack) = (runtime.clone(), stack.clone());
                Trial::test(concat!(stringify!($module), "::", stringify!($test)), move || {
                    let stack = stack.ok_or("no stack")?;
                    runtime.block_on($module::$test(api::Api::new(&stack)));
                    Ok(())
                })
            }),*),*]
        };
    }
    let mut trials = trials![
        // The longest come first.
        demo::{
            the_demo_passes,
        },
        bare_watch::{
            three_parts_make_the_stack,
        },
        life::{
            a_hold_becomes_an_order,
            an_unconfirmed_hold_expires_by_its_schedule_and_is_released_once,
            a_hold_can_be_extended_up_to_its_cap,
            a_hold_can_be_cancelled_more_than_once,
            a_late_payment_is_accepted_while_units_are_available,
            paid_late_and_gone_is_a_failed_confirmation_that_an_admin_settles,
            lists_show_the_customers_own,
        },
        money::{
            copies_of_one_late_payment_have_one_answer,
            a_refusal_of_a_payment_stays_even_if_units_are_released,
            overdue_holds_block_nothing,
            copies_of_one_adjustment_have_one_answer,
            fragmented_stock_of_two_products_is_sold_together,
            a_payment_without_a_reservation_is_recorded,
            an_order_is_given_back_and_sold_again,
        },
        holds::{
            an_admin_releases_a_hold_and_no_payment_makes_an_order_of_it,
            an_admin_releases_all_holds_of_a_product,
            a_basket_is_changed_while_it_is_held,
            a_guests_hold_is_handed_to_their_account,
        },
        races::{
            baskets_are_changed_as_their_holds_end,
            two_hundred_callers_for_the_last_unit,
            the_same_request_fifty_times_at_once,
            several_lines_all_or_nothing_under_contention,
            an_order_is_given_back_beside_its_own_payment_and_another,
            all_holds_are_released_while_customers_confirm_and_extend,
            a_product_is_archived_while_it_is_reserved,
        },
        crash::{
            peer_case_3_functions_killed_in_the_middle_of_five_hundred_reserves_lose_nothing,
        },
        outages::{
            a_payment_during_an_outage_of_the_table_becomes_an_order,
            peer_case_4_paid_while_table_and_queue_are_away_is_not_acknowledged,
            a_long_outage_of_the_table_costs_no_order,
            a_retry_by_an_admin_confirms_what_used_up_its_attempts,
        },
        peers::{
            peer_case_1_confirm_after_expiry_is_refused,
            peer_case_2_confirm_races_expiry,
            peer_case_5_quantities_and_ids_cannot_be_abused,
            peer_case_6_anothers_key_or_id_gives_nothing,
            peer_case_7_nobody_makes_themselves_admin,
            peer_case_9_contention_is_no_error_while_stock_remains,
        },
        bad_input::{
            every_field_at_its_limits_and_past_them,
            events_with_missing_fields,
        },
        integrators::{
            only_a_service_acts_for_customers,
            an_invalid_token_is_a_401,
            an_unknown_route_is_a_problem,
            a_nested_list_gives_no_roles_and_a_guest_cannot_sign_in,
            unknown_parameters_are_refused_except_on_public_routes,
            prices_have_an_exponent_and_times_three_decimals,
            a_limit_that_is_set_later_counts_what_was_bought_before,
            two_keys_are_refused_and_a_quoted_key_is_accepted,
            an_unchanged_product_is_a_304,
            concurrent_requests_of_a_customer_stay_within_their_limit,
            a_rate_limited_customer_gets_429_with_retry_after,
            only_pages_of_allowed_origins_may_call,
        },
        queues::{
            a_queued_confirmation_is_carried_out,
            a_poison_message_is_a_failed_confirmation_at_once,
            the_sweep_ingests_failed_confirmations,
            a_payment_for_an_unknown_reservation_needs_a_person,
        },
        readme::{
            the_documented_requests_get_the_documented_responses,
        },
        schemathesis::{
            the_api_matches_its_description,
        },
        client::{
            a_generated_client_makes_an_order,
        },
        console::{
            the_console_loads_from_the_api_only,
        },
        docs::{
            the_docs_page_loads_from_the_api_only,
            what_people_type_leads_to_the_docs_and_head_is_get_without_a_body,
        },
        up::{
            the_end_of_a_part_is_noticed,
        },
        audit::{
            ten_planted_inconsistencies_are_found,
            a_table_in_use_raises_no_alarm,
            the_admin_api_from_a_terminal,
        },
        admin::{
            products_are_created_changed_and_listed,
            stock_is_adjusted_once_with_a_reason,
            reservations_are_found_by_payment_customer_product_status_and_time,
            what_admins_do_is_written_down,
            a_cancelled_reservation_says_when_and_by_whom,
            failed_confirmations_are_found_by_their_reservation,
            an_auditor_reads_everything_and_changes_nothing,
        },
    ];
    let broken = trials![
        chaos::{
            the_emulator_frozen_and_stopped_and_answers_cut_off,
            functions_killed_again_and_again,
            queue_and_scheduler_away,
        },
    ];
    trials.insert(0, console::trial(&runtime));
    let (all, conclusion) = (trials.len() as u64, libtest_mimic::run(&arguments, trials));
    let threads = arguments.test_threads.map(|threads| threads.min(CHAOS_AT_ONCE));
    arguments = Arguments { test_threads: threads, ..arguments };
    let chaos = libtest_mimic::run(&arguments, broken);
    // Last, because they look at the calls of all others; and always, whatever the filter.
    // Without a browser, that of the console is ignored: its calls are made by the others, too.
    let complete = conclusion.num_passed + conclusion.num_ignored == all;
    let mut verdicts = permissions::trials(stack.as_ref(), complete);
    verdicts.push(described::trial(complete));
    arguments = Arguments { filter: None, exact: false, skip: Vec::new(), ..arguments };
    let verdict = libtest_mimic::run(&arguments, verdicts);
    if let Some(stack) = stack.and_then(Arc::into_inner) {
        runtime.block_on(stack.stop());
    }
    let failed = [conclusion, chaos].into_iter().find(libtest_mimic::Conclusion::has_failed);
    failed.unwrap_or(verdict).exit_code()
}
