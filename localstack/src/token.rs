//! Tokens for the local stack, which has no authorizer: the functions verify tokens themselves.
//!
//! The key is created once, at `target/local/signing-key.json`, readable by its owner only, as the JSON Web Key Set that the
//! functions get. It is useless elsewhere: a release has no code that would accept it.

use crate::error::{Context, Error, Result};
use crate::paths;
use data_encoding::BASE64URL_NOPAD;
use holdfast_domain::CustomerId;
use holdfast_http::{LOCAL_AUDIENCE, LOCAL_ISSUER};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use time::{Duration, OffsetDateTime};

/// A working day.
const LIFETIME: Duration = Duration::hours(12);
const KEY_ID: &str = "local";

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Own reservations only.
    Customer,
    /// What the customers may do that it names.
    Service,
    /// Products, stock, failed confirmations.
    Admin,
    /// Reads what an admin reads, and changes nothing.
    Auditor,
}

impl Role {
    /// Its name in tokens and requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Service => "service",
            Self::Admin => "admin",
            Self::Auditor => "auditor",
        }
    }
}

/// A token's `sub`, if the API accepts it.
///
/// # Errors
/// The API would refuse a token with it (401); the error is a sentence.
pub fn subject(text: &str) -> Result<String> {
    let customer = CustomerId::try_from(text)
        .map_err(|_| Error::new("it must be 1 to 255 printable ASCII characters, with no blank at either end"))?;
    if customer.is_guest() {
        return Err(Error::new("ids that begin with `guest:` are for guests without an account, who have no token"));
    }
    Ok(customer.into())
}

/// The claims that Cognito would put into an access token, as far as the functions read them.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    #[serde(rename = "cognito:groups", skip_serializing_if = "Option::is_none")]
    groups: Option<[&'a str; 1]>,
    iat: i64,
    exp: i64,
}

#[derive(Serialize, Deserialize)]
struct KeySet {
    keys: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    kty: String,
    kid: String,
    alg: String,
    #[serde(rename = "use")]
    usage: String,
    k: String,
}

/// The signing key of this workspace's local stacks.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    key_set: String,
}

impl Signer {
    /// Reads the key, or makes it the first time.
    ///
    /// # Errors
    /// The file cannot be written or read, or is not a key.
    pub fn load() -> Result<Self> {
        let path = paths::local("")?.join("signing-key.json");
        let wrong =
            || format!("{} is not the key that was written there (delete it: a new one is made)", path.display());
        if !path.exists() {
            make(&path)?;
        }
        let key_set = std::fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
        let keys: KeySet = serde_json::from_str(&key_set).context(wrong)?;
        let secret = keys.keys.first().ok_or_else(|| Error::new(wrong()))?.k.as_bytes();
        let secret = BASE64URL_NOPAD.decode(secret).context(wrong)?;
        Ok(Self { key: EncodingKey::from_secret(&secret), key_set })
    }

    /// What the functions verify with: the value of `HOLDFAST_LOCAL_KEY_SET`.
    pub fn key_set(&self) -> &str {
        &self.key_set
    }

    /// A token for `sub` in `role`, good for twelve hours.
    ///
    /// # Errors
    /// Signing fails, which no known input brings about.
    pub fn token(&self, sub: &str, role: Role) -> Result<String> {
        // Everybody is a customer.
        let groups = Some([role.name()]).filter(|_| role != Role::Customer);
        let now = OffsetDateTime::now_utc();
        let claims = Claims {
            iss: LOCAL_ISSUER,
            aud: LOCAL_AUDIENCE,
            sub,
            groups,
            iat: now.unix_timestamp(),
            exp: (now + LIFETIME).unix_timestamp(),
        };
        let header = Header { kid: Some(KEY_ID.to_owned()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &self.key).context(|| "cannot sign a token".into())
    }
}

/// Writes a new key to a temporary file and links it into place: the first one wins, and no reader sees a partial key.
fn make(path: &std::path::Path) -> Result<()> {
    let cannot = || format!("cannot make the signing key {}", path.display());
    let mut secret = [0_u8; 32];
    std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut secret)).context(cannot)?;
    let keys = KeySet {
        keys: vec![Key {
            kty: "oct".to_owned(),
            kid: KEY_ID.to_owned(),
            alg: "HS256".to_owned(),
            usage: "sig".to_owned(),
            k: BASE64URL_NOPAD.encode(&secret),
        }],
    };
    let text = serde_json::to_string(&keys).context(cannot)?;
    let draft = path.with_extension(format!("{:016x}.tmp", fastrand::u64(..)));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .context(cannot)?;
    let linked = std::fs::hard_link(&draft, path);
    let _ = std::fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error).context(cannot),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_token_verifies_against_the_key_set_and_carries_the_role() {
        let signer = Signer::load().unwrap();
        let keys: JwkSet = serde_json::from_str(signer.key_set()).unwrap();
        let key = DecodingKey::from_jwk(keys.find(KEY_ID).unwrap()).unwrap();
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_issuer(&[LOCAL_ISSUER]);
        rules.set_audience(&[LOCAL_AUDIENCE]);
        let claims = |role| {
            let token = signer.token("alice", role).unwrap();
            jsonwebtoken::decode::<Value>(&token, &key, &rules).unwrap().claims
        };
        assert_eq!(claims(Role::Admin)["cognito:groups"], serde_json::json!(["admin"]));
        assert_eq!(claims(Role::Service)["cognito:groups"], serde_json::json!(["service"]));
        let customer = claims(Role::Customer);
        assert_eq!(customer["sub"], "alice");
        assert_eq!(customer.get("cognito:groups"), None);
    }

    #[test]
    fn a_subject_that_the_api_would_refuse_is_refused() {
        for good in ["alice", "a guest:1", "guest", "user@shop.example", "auth0|12"] {
            assert_eq!(subject(good).unwrap(), good);
        }
        let long = "a".repeat(256);
        for bad in ["", " alice", "alice ", "guest:1", "guest:", "Zoë", "a\tb", &long] {
            assert!(subject(bad).is_err(), "{bad:?}");
        }
        assert!(subject("guest:1").unwrap_err().to_string().contains("guest:"));
    }

    #[test]
    fn nobody_else_can_read_the_key() {
        Signer::load().unwrap();
        let path = paths::local("").unwrap().join("signing-key.json");
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
