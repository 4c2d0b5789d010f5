//! The Secret that holds the passwords of one call. Apart, because it is pure, and because nothing else of this runner may
//! see a password.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use secrecy::ExposeSecret;

use super::ApiError;
use crate::job::{JobOrder, manifest};

/// The Secret of an order, owned by its Job, so that it goes when the Job goes; `None` when there are no passwords.
pub(super) fn of(order: &JobOrder, job: &Job) -> Option<Secret> {
    let mut secret = manifest::secret(order)?;
    // The Job's removal need not wait for the Secret's.
    let owner = job.controller_owner_ref(&())?;
    secret.metadata.owner_references = Some(vec![OwnerReference { block_owner_deletion: Some(false), ..owner }]);
    Some(secret)
}

/// Withholds the server's words when they hold a password. The API server itself only names keys; an admission webhook may
/// quote whatever it likes.
pub(super) fn guard(error: ApiError, order: &JobOrder) -> ApiError {
    let words = error.words();
    let encoded = |password: &str| data_encoding::BASE64.encode(password.as_bytes());
    let told = order
        .passwords
        .values()
        .map(ExposeSecret::expose_secret)
        .any(|password| !password.is_empty() && (words.contains(password) || words.contains(&encoded(password))));
    match error {
        ApiError::Answer(mut status) if told => {
            status.message = "the API server's words on the Secret are withheld, since they hold a password".to_owned();
            status.details = None;
            ApiError::Answer(status)
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::Status;

    use super::*;

    fn guarded(words: &str) -> String {
        let passwords = BTreeMap::from([("SIP_PASSWORD".to_owned(), "hunter2".into())]);
        let order = JobOrder { job: Job::default(), passwords };
        guard(ApiError::Answer(Status::failure(words, "Forbidden").with_code(403).boxed()), &order).words()
    }

    #[test]
    fn words_that_hold_a_password_are_withheld_and_others_are_not() {
        assert_eq!(guarded("exceeded quota: secrets"), "exceeded quota: secrets");
        for words in ["denied the request: hunter2 is weak", "denied the request: aHVudGVyMg== is weak"] {
            let told = guarded(words);
            assert!(!told.contains("hunter2") && !told.contains("aHVudGVyMg") && told.contains("withheld"), "{told}");
        }
    }
}
