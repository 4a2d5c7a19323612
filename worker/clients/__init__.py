"""The SDKs and protocols, opened once; vendor errors stop here and become ours."""
