//! What a shared store could say: its URL, the text of its epoch, and the numbers that scripts answer with, up to a NUL as text and
//! after it as numbers of eight bytes. Whatever they are, a pod lets no more calls through without asking than it was told that it
//! has leased.

use std::time::Duration;

use toolweir_crds::OnStoreFailure;
use toolweir_engine::{
    Amount, Timestamp,
    counters::{Hold, Identity, Take, instance},
    shared::{SharedHold, SharedTake, Wanted},
    window::Span,
};
use toolweir_store::{
    config::StoreUrl,
    local::{Local, Plan, Said},
    scripts::Keys,
};

use super::assert_one_line;

fn take(max: u64) -> SharedTake {
    let take = Take {
        identity: Identity::new("limit"),
        instance: instance(""),
        span: Span::new(Duration::from_secs(60)),
        max: Amount::whole(max),
        amount: Amount::ONE,
    };
    SharedTake { take, whose: "Namespace a".into(), failure: OnStoreFailure::PerPod }
}

fn text(text: &str) {
    match text.parse::<StoreUrl>() {
        Ok(url) => assert_eq!(url.to_string().parse::<StoreUrl>().ok(), Some(url), "what is shown is read again"),
        Err(error) => assert_one_line(&error.to_string()),
    }
    let keys = Keys::new("p").within(text);
    assert_eq!(keys.since(None), 0, "who was in no epoch brings everything");
    assert_eq!(keys.since(Some(text)), 0, "no epoch follows itself");
}

/// The check.
pub fn check(data: &[u8]) {
    let (words, numbers) = data.split_at(memchr::memchr(0, data).unwrap_or(data.len()));
    text(&String::from_utf8_lossy(words));
    let mut numbers = numbers
        .get(1..)
        .unwrap_or_default()
        .chunks_exact(8)
        .map(|eight| i64::from_le_bytes(eight.try_into().unwrap_or_default()));
    let places = Hold { identity: Identity::new("places"), max: 2 };
    let places = SharedHold { hold: places, whose: "Namespace a".into(), failure: OnStoreFailure::PerPod };
    let limit = [Wanted { takes: [take(100)].into_iter().collect(), ..Wanted::default() }];
    let both = [
        Wanted { takes: [take(100)].into_iter().collect(), holds: [places].into_iter().collect() },
        Wanted { takes: [take(3)].into_iter().collect(), ..Wanted::default() },
    ];
    let mut pod = Local::new(true, 10);
    let (mut now, mut leased, mut passed) = (1_u64, 0_u128, 0_u128);
    while let Some(first) = numbers.next() {
        now += u64::from(first.unsigned_abs() as u16);
        let (wanted, long) = if first % 2 == 0 { (&limit[..], 4) } else { (&both[..], 9) };
        let engine = Timestamp(now * 1000);
        match pod.plan(wanted, now, engine) {
            Plan::Said(said) => passed += said.iter().filter(|said| matches!(said, Said::Taken(_))).count() as u128,
            Plan::Ask(question) => {
                let store = numbers.next().unwrap_or_default().unsigned_abs() >> 2;
                let answer: Vec<i64> = numbers.by_ref().take(long).collect();
                for at in [3, 8] {
                    leased += answer.get(at).and_then(|leased| u128::try_from(*leased).ok()).unwrap_or_default();
                }
                if pod.answered(wanted, &question, store, &answer, now, engine).is_err() {
                    pod.unanswered(wanted, &question);
                }
            }
        }
        assert!(passed * u128::from(Amount::ONE.millionths()) <= leased, "{passed} calls with {leased} millionths leased");
        for used in pod.used(now).values() {
            assert!(used.as_f64() >= 0.0);
        }
        if first % 5 == 0 {
            pod.without_store(wanted, now, engine, false);
            pod.taken_alone();
            pod.closing(now);
            pod.sweep(now);
        }
    }
    pod.everything(now, now);
}
