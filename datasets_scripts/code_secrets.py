"""Secrets and e-mail addresses in the files of a code corpus: keys by the patterns of detect-secrets, addresses replaced."""

import re

from candidates import Drop


# Those that go by the entropy of a string or the name of a variable find more of what is none than of what is one.
LEFT_OUT = (
    *("Base64 High Entropy String", "Hex High Entropy String", "Secret Keyword", "Public IP (ipv4)"),
    *("Cloudant Credentials", "IBM Cloud IAM Key", "IBM COS HMAC Credentials", "SoftLayer Credentials"),
)
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}(?![\w-])")
# Reserved for examples (RFC 2606 and 6761), so they are nobody's.
NOBODY = re.compile(r"@(?:.*\.)?(?:example(?:\.\w+)?|invalid|localhost|test)$", re.IGNORECASE)
REPLACEMENT = "email@example.com"


class Secrets:
    """
    Looks for secrets and replaces addresses.

    Args:
        keys: `"drop"` refuses files with a secret, `"keep"` does not look for any.
        emails: `"replace"` writes `email@example.com` for every address, `"drop"` refuses files with one, `"keep"` leaves
            them.
    """

    def __init__(self, keys: str, emails: str):
        self.keys, self.emails, self.detectors = keys, emails, []
        self.replaced = self.files = 0  # addresses, and the files they stood in
        if keys == "keep":
            return
        try:
            from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        except ImportError as error:
            raise SystemExit(
                "Secrets are found with detect-secrets; install it with `pip install detect-secrets`, or give --secrets keep"
            ) from error
        kinds = get_mapping_from_secret_type_to_class()
        self.detectors = [kinds[name]() for name in sorted(kinds) if name not in LEFT_OUT]

    def clean(self, text: str) -> str:
        """
        The text with its addresses replaced.

        Raises:
            Drop: for a secret, with its kind and line and never with itself, or an address where those are dropped.
        """
        for detector in self.detectors:
            for found in detector.analyze_string(text):
                line = text[: text.find(found)].count("\n") + 1
                raise Drop("secret", f"{detector.secret_type}, line {line}")
        if self.emails == "keep":
            return text
        before = self.replaced
        text = EMAIL.sub(self._replacement, text)
        self.files += self.replaced > before
        return text

    def note(self, dropped: int) -> str:
        """What was done, for the card, and what was not."""
        kinds = ", ".join(detector.secret_type for detector in self.detectors)
        keys = f"{dropped} files with a secret were left out ({kinds})." if kinds else "Secrets were not looked for."
        emails = {
            "replace": f"{self.replaced} e-mail addresses in {self.files} files were replaced by `{REPLACEMENT}`.",
            "drop": "Files with an e-mail address were left out.",
            "keep": "E-mail addresses were kept.",
        }[self.emails]
        return (
            f"{keys} {emails} Not found: passwords and keys without a form of their own, names, telephone numbers, IP and "
            "postal addresses."
        )

    def _replacement(self, match: re.Match) -> str:
        if NOBODY.search(match[0]):
            return match[0]
        if self.emails == "drop":
            raise Drop("e-mail address", f"line {match.string[: match.start()].count(chr(10)) + 1}")
        self.replaced += 1
        return REPLACEMENT
