"""`regplug audit`: does the width of what reaches each FiLM input follow the sizes of the network?"""
