"""Certificates: of the servers outside, and those that somebody with the pod's intermediate authority could make."""

import datetime
import hashlib
import ipaddress
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate with its key, and those between it and the root, which it shows with what it signs."""

    def __init__(self, certificate, key, chain=()):
        self.certificate, self.key, self.chain = certificate, key, chain

    @classmethod
    def root(cls, name):
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_sign(_name(name), key.public_key(), None, key, ca=True), key)

    @classmethod
    def of_pod(cls, state):
        """The intermediate authority that a sidecar keeps in this file of its state."""
        kept = json.loads(state.read_text())["authority"]
        certificate = x509.load_pem_x509_certificate(kept["intermediate"].encode())
        return cls(certificate, serialization.load_pem_private_key(kept["key"].encode(), None), [certificate])

    def name(self):
        return self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value

    def intermediate(self, name):
        key = ec.generate_private_key(ec.SECP256R1())
        made = _sign(_name(name), key.public_key(), self.certificate, self.key, ca=True)
        return Authority(made, key, [made, *self.chain])

    def leaf(self, *names, subject="server", days=1):
        """The certificates to show for a server with these names and addresses, and its key, in PEM. `days` below 0: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _sign(_name(subject), key.public_key(), self.certificate, self.key, names, days)
        return "".join(map(pem, [made, *self.chain])) + pem(key)


def self_signed(name):
    key = ec.generate_private_key(ec.SECP256R1())
    return pem(_sign(_name(name), key.public_key(), None, key, [name])) + pem(key)


def pem(what):
    if isinstance(what, x509.Certificate):
        return what.public_bytes(serialization.Encoding.PEM).decode()
    form = serialization.PrivateFormat.PKCS8
    return what.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def fingerprint(certificate):
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text):
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _sign(subject, public, issuer, key, names=(), days=1, ca=False):
    """A certificate by an issuer's certificate and key; without the certificate, by itself."""
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
    )
    made = made.not_valid_before(now - DAY * (2 if days < 0 else 0.01)).not_valid_after(now + DAY * days)
    made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    usage = {"key_cert_sign": ca, "crl_sign": ca, "digital_signature": not ca}
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    made = made.add_extension(x509.KeyUsage(**usage, **dict.fromkeys(others, False)), critical=True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    if issuer:
        # OpenSSL and GnuTLS look for an issuer by its own identifier, which need not be the hash of its key that is usual.
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
    if not ca:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
    return made.sign(key, hashes.SHA256())
