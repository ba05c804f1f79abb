"""Certificates for receivers over https, made anew for every run."""

import ssl

import trustme


class Authority:
    """A certificate authority whose PEM file the server can be pointed at."""

    def __init__(self, directory):
        self.authority = trustme.CA()
        self.directory = directory
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)

    def context(self, *names, require_client=False):
        """A server's TLS context for these host names or addresses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
        if require_client:
            context.verify_mode = ssl.CERT_REQUIRED
            self.authority.configure_trust(context)
        return context

    def client_files(self, name="store@example.org"):
        """(certificate file, key file) of a client that the authority knows."""
        certificate = self.authority.issue_cert(name)
        chain, key = self.directory / "client.pem", self.directory / "client.key"
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        certificate.private_key_pem.write_to_path(key)
        return chain, key
