//! Users: signing up, becoming an admin, and the tokens of the stack's user pool.
//!
//! The emulator deploys no routes for an HTTP API, so its authorizer cannot be asked. What the authorizer does is done
//! here instead: the token is checked by the pool's public keys, and its claims go into the event.

use holdfast_testkit::event::event;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::cloud::Cloud;

const PASSWORD: &str = "correct-Horse-7-battery";

/// Signs a user up. (The emulator accepts any code.)
async fn sign_up(cloud: &Cloud, address: &str) {
    let client = cloud.output("UserPoolClientId");
    let body = json!({
        "ClientId": client, "Username": address, "Password": PASSWORD,
        "UserAttributes": [{"Name": "email", "Value": address}],
    });
    let (status, answer) = cloud.cognito(false, "SignUp", body).await;
    assert_eq!(status, 200, "{answer}");
    confirm(cloud, address).await;
}

async fn confirm(cloud: &Cloud, address: &str) {
    let body = json!({"UserPoolId": cloud.output("UserPoolId"), "Username": address});
    let (status, answer) = cloud.cognito(true, "AdminConfirmSignUp", body).await;
    assert_eq!(status, 200, "{answer}");
}

/// Logs in, checks the access token as an authorizer does, and answers its claims.
async fn claims(cloud: &Cloud, address: &str) -> Value {
    let body = json!({
        "AuthFlow": "USER_PASSWORD_AUTH", "ClientId": cloud.output("UserPoolClientId"),
        "AuthParameters": {"USERNAME": address, "PASSWORD": PASSWORD},
    });
    let (status, answer) = cloud.cognito(false, "InitiateAuth", body).await;
    assert_eq!(status, 200, "{answer}");
    let token = answer["AuthenticationResult"]["AccessToken"].as_str().expect("an access token");
    let keys: JwkSet = serde_json::from_value(cloud.user_pool_keys().await).unwrap();
    let id = jsonwebtoken::decode_header(token).unwrap().kid.expect("a key's id");
    let key = DecodingKey::from_jwk(keys.find(&id).expect("the pool's key")).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    // Access tokens of Cognito have no audience: API Gateway takes `client_id` for it.
    validation.validate_aud = false;
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).expect("a signature of the pool").claims;
    assert_eq!(claims["client_id"], cloud.output("UserPoolClientId"));
    assert_eq!(claims["token_use"], "access");
    let issuer = claims["iss"].as_str().unwrap();
    assert!(issuer.ends_with(&format!("/{}", cloud.output("UserPoolId"))), "{issuer}");
    claims
}

/// The event of an admin's request by somebody with these claims, which API Gateway hands over as text: a list as
/// `[one two]`.
fn asks_for_products(claims: &Value) -> Value {
    let mut request = event("admin/list-products");
    let said = &mut request["requestContext"]["authorizer"]["jwt"]["claims"];
    *said = json!({});
    for (name, value) in claims.as_object().unwrap() {
        let words = |list: &Vec<Value>| list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        said[name] = match value {
            Value::Array(list) => json!(format!("[{}]", words(list))),
            Value::String(text) => json!(text),
            other => json!(other.to_string()),
        };
    }
    request
}

/// Who signs up is a customer; only the account's credentials make an admin.
pub(crate) async fn only_the_account_makes_an_admin(cloud: &Cloud) {
    let (somebody, admin) = ("somebody@shop.example", "admin@shop.example");
    for address in [somebody, admin] {
        sign_up(cloud, address).await;
    }
    let group =
        |address: &str| json!({"UserPoolId": cloud.output("UserPoolId"), "Username": address, "GroupName": "admin"});
    let (status, answer) = cloud.cognito(true, "AdminAddUserToGroup", group(admin)).await;
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = cloud.cognito(false, "AdminAddUserToGroup", group(somebody)).await;
    assert_ne!(status, 200, "somebody made themselves an admin: {answer}");

    let theirs = claims(cloud, somebody).await;
    assert!(theirs["cognito:groups"].as_array().is_none_or(Vec::is_empty), "{theirs}");
    cloud.http("AdminFunction", &asks_for_products(&theirs)).await.is(403);
    let theirs = claims(cloud, admin).await;
    assert_eq!(theirs["cognito:groups"], json!(["admin"]));
    cloud.http("AdminFunction", &asks_for_products(&theirs)).await.is(200);
}

/// No attribute at the sign-up makes an admin: Cognito refuses attributes that the app client may not write. The emulator
/// accepts them, and then the token and the function must not.
pub(crate) async fn a_sign_up_brings_no_groups(cloud: &Cloud) {
    let client = cloud.output("UserPoolClientId");
    for attribute in ["cognito:groups", "custom:groups", "custom:role"] {
        let address = format!("{}@shop.example", attribute.replace(':', "-"));
        let body = json!({
            "ClientId": client, "Username": address, "Password": PASSWORD,
            "UserAttributes": [{"Name": "email", "Value": address}, {"Name": attribute, "Value": "admin"}],
        });
        let (status, _) = cloud.cognito(false, "SignUp", body).await;
        if status != 200 {
            continue;
        }
        confirm(cloud, &address).await;
        let theirs = claims(cloud, &address).await;
        assert!(theirs["cognito:groups"].as_array().is_none_or(Vec::is_empty), "{attribute}: {theirs}");
        cloud.http("AdminFunction", &asks_for_products(&theirs)).await.is(403);
    }
    let body = json!({"ClientId": client, "Username": "short@shop.example", "Password": "Short-1"});
    let (status, answer) = cloud.cognito(false, "SignUp", body).await;
    assert_eq!(status, 400, "{answer}");
}
