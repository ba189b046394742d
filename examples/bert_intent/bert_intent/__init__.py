"""The reference service: BERT intent detection that scales itself with gpuscale."""
