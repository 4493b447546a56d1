"""Makes vectors.json: tokens of another implementation. Keys are made anew and thrown away.

python3 -m venv v && v/bin/pip install 'pyjwt[crypto]==2.15.1' && v/bin/python vectors.py > vectors.json
"""

import base64, hashlib, hmac, json
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import algorithms

CLAIMS = {
    "iss": "https://issuer.example",
    "aud": ["other", "tbmq"],
    "sub": "meter-1",
    "nbf": 1_500_000_000,
    "exp": 2_000_000_000,
    "user": "alice",
    "pub": ["meters/1/.*"],
}
SECRET = "sixty-four bytes that nobody would guess, if they were not here!"

rsa_key = rsa.generate_private_key(65537, 2048)
keys = {
    "rsa": (rsa_key, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], algorithms.RSAAlgorithm),
    "p256": (ec.generate_private_key(ec.SECP256R1()), ["ES256"], algorithms.ECAlgorithm),
    "p384": (ec.generate_private_key(ec.SECP384R1()), ["ES384"], algorithms.ECAlgorithm),
    "ed25519": (ed25519.Ed25519PrivateKey.generate(), ["EdDSA"], algorithms.OKPAlgorithm),
}


def segment(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def hmac_signed(header, secret):
    text = segment(header) + "." + segment(CLAIMS)
    return text + "." + segment(hmac.new(secret, text.encode(), hashlib.sha256).digest())


pems, jwks, good, forged = {}, [], [], []
for name, (private, algs, algorithm) in keys.items():
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    pems[name] = pem.decode()
    jwks.append({**json.loads(algorithm.to_jwk(public)), "kid": name, "use": "sig"})
    for alg in algs:
        token = jwt.encode(CLAIMS, private, algorithm=alg, headers={"kid": name})
        good.append({"alg": alg, "key": name, "token": token})
    # The public key as the secret of an HMAC, in every form that it comes in.
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for what, secret in [("pem", pem), ("pem without its last newline", pem.rstrip()), ("der", der)]:
        token = hmac_signed({"alg": "HS256", "typ": "JWT", "kid": name}, secret)
        forged.append({"what": f"HS256 with the public key of {name} in {what}", "token": token})
for alg in ["HS256", "HS384", "HS512"]:
    good.append({"alg": alg, "key": "secret", "token": jwt.encode(CLAIMS, SECRET, algorithm=alg)})

for alg in ["none", "None", "NONE", "nOnE", ""]:
    forged.append({"what": f"alg {alg!r}", "token": segment({"alg": alg}) + "." + segment(CLAIMS) + "."})
own = ec.generate_private_key(ec.SECP256R1())
embedded = json.loads(algorithms.ECAlgorithm.to_jwk(own.public_key()))
for headers in [{"jwk": embedded}, {"jku": "http://127.0.0.1/keys"}, {"kid": "p256", "jwk": embedded}]:
    token = jwt.encode(CLAIMS, own, algorithm="ES256", headers=headers)
    forged.append({"what": f"a key of its own, header {list(headers)}", "token": token})
head, body, signature = good[0]["token"].split(".")
altered = segment({**CLAIMS, "user": "root"})
forged.append({"what": "other claims", "token": f"{head}.{altered}.{signature}"})
forged.append({"what": "no signature", "token": f"{head}.{body}."})
forged.append({"what": "an empty secret", "token": hmac_signed({"alg": "HS256"}, b"")})
crit = jwt.encode(CLAIMS, rsa_key, algorithm="RS256", headers={"kid": "rsa", "crit": ["b64"], "b64": True})
forged.append({"what": "an extension that must be understood", "token": crit})
# ECDSA of zeros (CVE-2022-21449).
zeros = segment({"alg": "ES256", "kid": "p256"}) + "." + segment(CLAIMS) + "." + segment(bytes(64))
forged.append({"what": "a signature of zeros", "token": zeros})

print(json.dumps({
    "claims": CLAIMS, "secret": SECRET, "pems": pems, "jwks": {"keys": jwks}, "good": good, "forged": forged,
}, indent=1))
