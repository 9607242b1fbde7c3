"""The hash of the public key that a TLS server presents, as Chromium wants it on its command line."""

import argparse
import base64
import hashlib
import socket
import ssl

from report import need, say

with need("cryptography"):
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    options = parser.parse_args()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", options.port), timeout=20) as plain:
        with context.wrap_socket(plain, server_hostname=options.host) as secure:
            certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    say(spki=base64.b64encode(hashlib.sha256(key).digest()).decode())


if __name__ == "__main__":
    main()
