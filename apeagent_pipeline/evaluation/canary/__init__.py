"""The canary evaluation: do the answers come from the training?"""
