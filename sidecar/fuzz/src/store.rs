//! What a shared store could say: its URL, the text of its epoch, and the numbers that scripts answer with, up to a NUL as text and
//! after it as numbers of eight bytes. Whatever they are, a pod lets no more calls through without asking than it was told that it
//! has leased.

use std::time::Duration;

use toolweir_crds::OnStoreFailure;
use toolweir_engine::{
    Amount, Timestamp,
    shared::{SharedDemand, SharedHold, SharedTake},
    take::{Hold, Identity, Take, instance},
    window::Span,
};
use toolweir_store::{
    answer::DemandAnswer,
    config::StoreUrl,
    local::{LocalCounts, LocalDecision},
    scripts::KeySpace,
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
    SharedTake { take, pod_group: "Namespace a".into(), failure: OnStoreFailure::PerPod }
}

fn text(text: &str) {
    match text.parse::<StoreUrl>() {
        Ok(url) => assert_eq!(url.to_string().parse::<StoreUrl>().ok(), Some(url), "what is shown is read again"),
        Err(error) => assert_one_line(&error.to_string()),
    }
    let keys = KeySpace::new("p").in_epoch(text);
    assert_eq!(keys.lost_since(None), 0, "who was in no epoch brings everything");
    assert_eq!(keys.lost_since(Some(text)), 0, "no epoch follows itself");
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
    let places = SharedHold { hold: places, pod_group: "Namespace a".into(), failure: OnStoreFailure::PerPod };
    let limit = [SharedDemand { takes: [take(100)].into_iter().collect(), ..SharedDemand::default() }];
    let both = [
        SharedDemand { takes: [take(100)].into_iter().collect(), holds: [places].into_iter().collect() },
        SharedDemand { takes: [take(3)].into_iter().collect(), ..SharedDemand::default() },
    ];
    let mut pod = LocalCounts::new(true, 10);
    let (mut now, mut leased, mut passed) = (1_u64, 0_u128, 0_u128);
    while let Some(first) = numbers.next() {
        now += u64::from(first.unsigned_abs() as u16);
        let (wanted, long) = if first % 2 == 0 { (&limit[..], 4) } else { (&both[..], 9) };
        let engine = Timestamp(now * 1000);
        let decision = pod.decide(wanted, now, engine);
        assert!(decision.is_ok(), "a count is not known");
        match decision {
            Err(_) => {}
            Ok(LocalDecision::Answered(answers)) => {
                passed += answers.iter().filter(|answer| matches!(answer, DemandAnswer::Taken(_))).count() as u128
            }
            Ok(LocalDecision::Ask(request)) => {
                let store = numbers.next().unwrap_or_default().unsigned_abs() >> 2;
                let answer: Vec<i64> = numbers.by_ref().take(long).collect();
                for at in [3, 8] {
                    leased += answer.get(at).and_then(|leased| u128::try_from(*leased).ok()).unwrap_or_default();
                }
                if pod.apply_reply(wanted, &request, store, &answer, now, engine).is_err() {
                    pod.request_lost(wanted, &request);
                }
            }
        }
        assert!(passed * u128::from(Amount::ONE.millionths()) <= leased, "{passed} calls with {leased} millionths leased");
        for used in pod.used(now).values() {
            assert!(used.as_f64() >= 0.0);
        }
        if first % 5 == 0 {
            pod.fall_back(wanted, now, engine, false);
            pod.offline_updates();
            pod.close_leases(now);
            pod.sweep(now);
        }
    }
    pod.enter_epoch(now, now);
}
